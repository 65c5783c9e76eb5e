"""Calls of auto_LiRPA's own methods: state put back after a failure, one error for whatever they raise, and float64.

A method of auto_LiRPA that fails leaves the nodes as they were at that moment, with shapes of the failed call, and says
what went wrong in terms of its own tensors. Here a call that fails in patches is tried again on matrices; one that
fails on those too leaves the module as it was, and raises `MethodFailedError`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from auto_LiRPA import BoundedTensor
from auto_LiRPA.bound_ops import Bound
from torch import Tensor, nn

from lirpa_lip.autolirpa.ball_repair import use_matrices
from lirpa_lip.autolirpa.perturbation import in_region
from lirpa_lip.errors import LirpaLipError, MethodFailedError

_CONTAINERS = (dict, list, set)


def guarded(module: Any, method: object, call: Callable[[], Any]) -> Any:
    """``call()``, an auto_LiRPA method of ``module``.

    Raises:
        MethodFailedError: it raised something that is neither of this package nor a lack of memory.
    """
    if getattr(module, "_in_lirpa_call", False):
        return call()  # auto_LiRPA's methods call each other
    before = _state(module)
    try:
        return _run(module, call)
    except Exception as error:
        _restore(before)
        if _passes(error):
            raise
        failed = error
    if getattr(module, "conv_mode", None) == "patches":
        use_matrices(module)
        try:
            return _run(module, call)
        except Exception as error:
            _restore(before)
            if _passes(error):
                raise
            failed = error
    raise _failure(failed, method) from failed


def _run(module: Any, call: Callable[[], Any]) -> Any:
    module.__dict__["_in_lirpa_call"] = True
    try:
        return call()
    finally:
        module.__dict__.pop("_in_lirpa_call", None)


def _passes(error: Exception) -> bool:
    """Whether an exception says what it means: ours, a lack of memory, and an operator that auto_LiRPA names."""
    lacks_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
    named = isinstance(error, NotImplementedError) and "is not supported yet" in str(error)
    return isinstance(error, LirpaLipError) or lacks_memory or named


def _failure(error: Exception, method: object) -> MethodFailedError:
    node, operator = "", ""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, Bound) and owner.name:
            node, operator = owner.name, type(owner).__name__
        trace = trace.tb_next
    return MethodFailedError(method, f"{type(error).__name__}: {error}".strip(), node, operator)


def _state(module: nn.Module) -> list[tuple[dict, dict, list[tuple[Any, Any]]]]:
    """What the nodes hold, with the contents of their dictionaries and lists."""
    kept = []
    for node in module.modules():
        inner = [(v, copy.copy(v)) for v in node.__dict__.values() if isinstance(v, _CONTAINERS)]
        kept.append((node.__dict__, dict(node.__dict__), inner))
    return kept


def _restore(kept: list[tuple[dict, dict, list[tuple[Any, Any]]]]) -> None:
    for attributes, before, inner in kept:
        attributes.clear()
        attributes.update(before)
        for container, contents in inner:
            if isinstance(container, list):
                container[:] = contents
            else:
                container.clear()
                container.update(contents)


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """``module`` in float64, whatever its precision; afterwards it is what it was, bounds on its nodes included.

    Parameters are cast, not copied: what is computed is differentiable with respect to them.
    """
    before = _state(module)
    module.__dict__["_in_float64"] = True  # the model's own tensors stay out of it
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    try:
        for node in module.modules():
            node.__dict__["_model_dtype"] = own  # what numbers given to operators are rounded to
            for name, value in node._parameters.items():
                if value is not None and value.is_floating_point():
                    node._parameters[name] = _parameter(node, value).double()  # type: ignore[assignment]
            for name, value in node._buffers.items():
                if value is not None and value.is_floating_point():
                    node._buffers[name] = value.double()
            for name, value in node.__dict__.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    node.__dict__[name] = value.double()
        yield
    finally:
        _restore(before)


def _parameter(node: nn.Module, value: Tensor) -> Tensor:
    """auto_LiRPA decides by its mode, each time it reads a parameter, whether that takes gradients."""
    return node.forward() if hasattr(node, "ori_name") else value


def double_input(x: Any) -> tuple[Any, ...]:
    """The inputs of a call with their regions, in float64."""
    return tuple(_double(part) for part in (x if isinstance(x, (tuple, list)) else (x,)))


def _double(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    if not isinstance(x, BoundedTensor):
        return x.double()
    region = copy.copy(x.ptb)
    for name, value in vars(region).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(region, name, value.double())
    return in_region(x.as_subclass(Tensor).double(), region)
