"""Lets auto_LiRPA 0.3 … 0.7 and torchvision run on current torch and numpy.

auto_LiRPA 0.3 is the last release on PyPI and was written for torch < 1.13 and numpy 1. What it misses is filled in
here: each function below puts back one thing, only where it is missing, and says when it can go. Later versions need
none of it. Everything is safe to call again.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

from lirpa_lip.errors import INSTALL_AUTO_LIRPA, MissingDependencyError

_declared: list[torch.library.Library] = []  # an operator lives as long as the Library that declares it


def restore_numpy_isin() -> None:
    """``numpy.lib.arraysetops``: 0.3 imports ``isin`` from it (and never calls it); numpy 2 made it private.

    Can go with 0.3.
    """
    name = "numpy.lib.arraysetops"
    if importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        module.isin = numpy.isin  # type: ignore[attr-defined]
        sys.modules[name] = module


def restore_set_opset_version() -> None:
    """``torch.onnx.symbolic_helper._set_opset_version``: 0.3 sets its opset by it; gone since torch 1.13.

    Can go with 0.3.
    """
    import torch.onnx.symbolic_helper as helper

    if not hasattr(helper, "_set_opset_version"):
        # GLOBALS has moved between torch versions; a function of the helper that reads it knows where it is.
        settings = helper.check_training_mode.__globals__["GLOBALS"]

        def _set_opset_version(version: int) -> None:
            settings.export_onnx_opset_version = version

        helper._set_opset_version = _set_opset_version


def restore_node_items() -> None:
    """``node[attribute]`` on ``torch._C.Node``: 0.3 reads the graph's attributes so; gone since torch 2.0.

    Can go with 0.3.
    """
    if not hasattr(torch._C.Node, "__getitem__"):

        def __getitem__(self: torch._C.Node, attribute: str) -> Any:
            return getattr(self, self.kindOf(attribute))(attribute)

        torch._C.Node.__getitem__ = __getitem__  # type: ignore[attr-defined]


def accept_remove_duplicate(bounded_module: type) -> None:
    """``BoundedModule._named_members``: torch 2 passes it ``remove_duplicate``, which 0.3's override does not know.

    Without it ``named_parameters`` fails, and with it CROWN on a residual network. Can go with 0.3.
    """
    original: Callable[..., Iterator[Any]] = bounded_module._named_members  # type: ignore[attr-defined]
    if "remove_duplicate" in inspect.signature(original).parameters:
        return

    def _named_members(
        self: Any, get_members_fn: Callable, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[Any]:
        if remove_duplicate:
            yield from original(self, get_members_fn, prefix=prefix, recurse=recurse)
            return
        members = torch.nn.Module._named_members(self, get_members_fn, prefix, recurse, remove_duplicate=False)
        for name, value in members:
            yield self.node_name_map.get(name, name), value

    bounded_module._named_members = _named_members  # type: ignore[attr-defined]


def use_current_register_parameter(bounded_module: type) -> None:
    """``BoundedModule.register_parameter``: 0.3 carries a copy of torch 1's, which asks the removed ``torch._six``.

    Giving a BoundedModule a parameter fails on it; torch's own method does the same work. Can go with 0.3.
    """
    own = bounded_module.__dict__.get("register_parameter")
    if own is not None and "_six" in own.__code__.co_names and not hasattr(torch, "_six"):
        bounded_module.register_parameter = torch.nn.Module.register_parameter  # type: ignore[attr-defined]


def declare_torchvision_operators() -> None:
    """``torchvision::nms`` and ``qnms``: a torchvision built for CUDA cannot load its library beside a CPU-only torch.

    It then lacks these operators, and importing it fails where it describes them to the compiler. Nothing here calls
    them. Where the library loads, it brings them itself. Can go when torchvision's import no longer needs its library.
    """
    spec = importlib.util.find_spec("torchvision") if torch.version.cuda is None else None
    if spec is None or not spec.submodule_search_locations or "torchvision" in sys.modules:
        return
    for library in sorted(Path(spec.submodule_search_locations[0]).glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))  # what torchvision does itself, so nothing is loaded twice
        except OSError:
            continue
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                   "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            fragment = torch.library.Library("torchvision", "FRAGMENT")
            fragment.define(schema)
            _declared.append(fragment)


def import_auto_lirpa() -> types.ModuleType:
    """Import auto_LiRPA, as it is where that works, else with what 0.3 misses put back.

    Raises:
        MissingDependencyError: auto_LiRPA is not installed; the message holds the command that installs it.
    """
    if importlib.util.find_spec("auto_LiRPA") is None:
        raise MissingDependencyError(f"lirpa_lip needs auto_LiRPA. Install it with:  {INSTALL_AUTO_LIRPA}")
    with warnings.catch_warnings(record=True) as caught:  # it sets the filters too; they come back as they were
        try:
            module = importlib.import_module("auto_LiRPA")
        except ImportError:
            restore_numpy_isin()
            restore_set_opset_version()
            for name in [name for name in sys.modules if name.split(".")[0] == "auto_LiRPA"]:
                del sys.modules[name]  # halves left by the failed import
            module = importlib.import_module("auto_LiRPA")
    for warning in caught:
        if not issubclass(warning.category, (DeprecationWarning, FutureWarning)):  # about its own use of torch
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not hasattr(sys.modules["auto_LiRPA.parse_graph"], "get_node_attribute"):
        restore_node_items()  # 0.3 indexes the nodes; later versions read their attributes through that function
    accept_remove_duplicate(module.BoundedModule)
    use_current_register_parameter(module.BoundedModule)
    return module


declare_torchvision_operators()
import_auto_lirpa()
