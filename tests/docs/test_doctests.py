"""The examples in docstrings, those of every page of the reference, print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "bounded_module", "certifying", "config", "losses.bound", "losses.gloro", "margin", "methods", "nn.clipped_relu",
    "nn.maxmin", "norms.solve", "plots.radii", "results", "verify.api",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    if name.startswith("plots"):
        pytest.importorskip("matplotlib")
    module = importlib.import_module(f"lirpa_lip.{name}")
    found = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0 and found.failed == 0
