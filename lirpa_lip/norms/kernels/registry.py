"""Which implementation of the fused steps runs: chosen by device, or by name.

``LIRPA_LIP_KERNELS=reference|triton`` in the environment overrides the choice, `use_backend` overrides both. Adding an
implementation means one file with the functions of `reference` and one row in ``_MODULES``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from lirpa_lip.errors import MissingDependencyError, UnknownMethodError

_MODULES = {
    "reference": "lirpa_lip.norms.kernels.reference",
    "triton": "lirpa_lip.norms.kernels.triton",
}

_forced: list[str] = []


def backend(device: torch.device) -> ModuleType:
    """The module whose functions run the steps on this device.

    Raises:
        UnknownMethodError: the environment names an implementation that does not exist.
        MissingDependencyError: Triton was asked for by name and is not installed.
    """
    name = _forced[-1] if _forced else os.environ.get("LIRPA_LIP_KERNELS", "")
    if not name:
        name = "triton" if device.type == "cuda" and importlib.util.find_spec("triton") else "reference"
    if name not in _MODULES:
        raise UnknownMethodError(name, _MODULES, "kernel implementation")
    if name == "triton" and importlib.util.find_spec("triton") is None:
        raise MissingDependencyError("the triton kernels need Triton: pip install triton.")
    return importlib.import_module(_MODULES[name])


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the context, every step runs on the named implementation."""
    if name not in _MODULES:
        raise UnknownMethodError(name, _MODULES, "kernel implementation")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()
