"""Docstrings of public names are whole: every parameter, what is raised, and where a formula is from."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytest

MODULES = ("lirpa_lip", "lirpa_lip.nn", "lirpa_lip.losses", "lirpa_lip.norms", "lirpa_lip.plots", "lirpa_lip.verify")
THEIRS = {"BoundedTensor"}  # auto_LiRPA's own


def public() -> dict[str, Any]:
    """``module.name`` -> class or function, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if name not in THEIRS and (inspect.isclass(value) or inspect.isfunction(value)):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


NAMES = public()


def text_of(value: Any) -> str:
    """The docstring; of a class with that of its call, which a page shows beside it."""
    forward = getattr(value, "forward", None) if inspect.isclass(value) else None
    return f"{inspect.getdoc(value)}\n{inspect.getdoc(forward) if forward else ''}"


@pytest.mark.parametrize("name", NAMES)
def test_it_has_one_of_its_own(name: str) -> None:
    value = NAMES[name]
    assert value.__doc__ and not value.__doc__.startswith(f"{value.__name__}("), "a docstring, not a signature"
    forward = getattr(value, "forward", None)
    assert "Define the computation" not in (inspect.getdoc(forward) or ""), "torch's words, not ours"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_explained(name: str) -> None:
    """In a list of arguments or attributes, or by its name as code."""
    value = NAMES[name]
    if dataclasses.is_dataclass(value) or not inspect.isclass(value):
        names = list(inspect.signature(value).parameters)
    elif "__init__" in vars(value):
        names = list(inspect.signature(value.__init__).parameters)[1:]
    else:
        names = list(getattr(value, "_fields", ()))
    text = text_of(value)
    listed = {word for line in re.findall(r"(?m)^ *([\w, ]+):", text) for word in re.findall(r"\w+", line)}
    explained = listed | set(re.findall(r"``(\w+)``", text)) | {"args", "kwargs"}
    assert not [n for n in names if not n.startswith("_") and n not in explained]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_raises_is_named(name: str) -> None:
    """Of functions, initialisers and calls: whatever their own bodies raise."""
    value = NAMES[name]
    parts = ("__init__", "__post_init__", "forward")
    bodies = [value] if inspect.isfunction(value) else [vars(value)[part] for part in parts if part in vars(value)]
    raised: set[str] = set()
    for body in bodies:
        if body.__module__.startswith("lirpa_lip") and "<string>" not in body.__code__.co_filename:
            raised |= set(re.findall(r"raise (\w+Error)\(", inspect.getsource(body)))
    assert not {error for error in raised if error not in text_of(value)}


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("lirpa_lip.losses.") and n.endswith("Loss")])
def test_a_loss_says_its_formula_shapes_and_source(name: str) -> None:
    text = text_of(NAMES[name])
    assert "(batch" in text, "shapes"
    if not name.endswith("RobustLoss"):
        assert re.search(r"arXiv \d{4}\.\d{5}", text), "source"
