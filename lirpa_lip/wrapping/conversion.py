"""From a model to auto_LiRPA's graph of it: what is checked before, prepared meanwhile and explained where it fails."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import auto_LiRPA
import torch
from auto_LiRPA.bound_ops import Bound
from torch import Tensor, nn

from lirpa_lip.autolirpa.arguments import ordinary, ordinary_tensors
from lirpa_lip.errors import ConfigError, LirpaLipError, ShapeError, UnsupportedOperatorError
from lirpa_lip.network.adapters.table import ADAPTERS
from lirpa_lip.precision import forward_in_callers_precision, model_precision
from lirpa_lip.wrapping.registration import unsupported_operators
from lirpa_lip.wrapping.trace import prepared


def convert(
    bounded: Any,
    model: Any,
    global_input: Any,
    initialise: Callable[[Any], None],
    options: Mapping[str, Any],
) -> list[str]:
    """Runs auto_LiRPA's constructor (``initialise(global_input)``) on a trace prepared by `lirpa_lip.wrapping.trace`.

    Returns:
        Names of functional operators in training mode, where the model is.

    Raises:
        UnsupportedOperatorError: naming the operator, for whatever reason the model could not be converted.
        ShapeError: the example input has no batch axis, or the model does not return one tensor.
        ConfigError: the example input and the model differ in precision.
    """
    if isinstance(model, auto_LiRPA.BoundedModule) or not isinstance(model, nn.Module):
        initialise(global_input)
        return []
    if any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        raise ConfigError(
            "the model's parameters were made under torch.inference_mode(), and cannot be differentiated; make or load "
            "the model outside of it."
        )
    with ordinary_tensors():
        given = ordinary(global_input)
        _check_input(given)
        try:
            with model_precision(model), prepared(model) as preparation, _loading_what_is_known(bounded):
                with forward_in_callers_precision(model):
                    initialise(given)
                preparation.finish(bounded)
        except LirpaLipError:
            raise
        except Exception as error:
            raise _explained(error, model, given, options) from error
    return preparation.unsettled


@contextmanager
def _loading_what_is_known(bounded: Any) -> Iterator[None]:
    """0.7 loads the model's own state into the converted one at the end, in which folded values have no place."""
    load = type(bounded).load_state_dict
    bounded.__dict__["load_state_dict"] = lambda state, *_, **__: load(bounded, state, strict=False)
    try:
        yield
    finally:
        bounded.__dict__.pop("load_state_dict", None)


def _check_input(given: Any) -> None:
    if isinstance(given, Tensor) and given.ndim < 2:
        raise ShapeError(
            f"the example input has shape {tuple(given.shape)}; give one with the batch axis first and at least one "
            "more axis, as in x.unsqueeze(0)."
        )


def _explained(error: Exception, model: nn.Module, given: Any, options: Mapping[str, Any]) -> Exception:
    origin: BaseException | None = error
    while origin is not None:  # 0.7 has words of its own for whatever ends a trace
        if isinstance(origin, LirpaLipError):
            return origin
        origin = origin.__cause__ or origin.__context__
    inputs = given if isinstance(given, tuple) else (given,)
    try:
        with torch.no_grad():
            out = model(*inputs)
    except Exception as own:
        kinds = {p.dtype for p in model.parameters()}
        floats = {x.dtype for x in inputs if isinstance(x, Tensor) and x.is_floating_point()}
        if kinds and floats and not floats <= kinds:
            return ConfigError(
                f"the example input is {', '.join(map(str, floats))} and the model {', '.join(map(str, kinds))}: "
                "convert one to the other's precision, as in x.to(torch.float32) or model.double()."
            )
        shapes = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in inputs if isinstance(x, Tensor))
        return ShapeError(
            f"the model itself does not run on the example input ({shapes}): {type(own).__name__}: {_first_line(own)}. "
            "Give an input as the model takes it, with the batch axis first."
        )
    if not isinstance(out, Tensor):
        return ShapeError(
            f"the model returns a {type(out).__name__}; bounds are for one tensor: wrap the model in a module that "
            "returns the part to bound."
        )
    if isinstance(error, NotImplementedError):
        with prepared(model):
            missing = unsupported_operators(model, given, options)
        if missing:
            return UnsupportedOperatorError(*missing[0], ADAPTERS, "auto_LiRPA cannot trace it")
    node, operator = blamed(error)
    reason = f"auto_LiRPA fails on it ({type(error).__name__}: {_first_line(error)}); write it with other operators"
    return UnsupportedOperatorError(node, operator, reason=reason)


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n") or [""])[0].rstrip(".")[:200]


def blamed(error: BaseException) -> tuple[str, str]:
    """Name and class of the node auto_LiRPA was at when it raised: the innermost of its frames that speaks of one."""
    found = ("the model", "?")
    trace: types.TracebackType | None = error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_locals
        traced, at = names.get("nodesOP"), names.get("n")
        if isinstance(traced, list) and isinstance(at, int) and at < len(traced) and hasattr(traced[at], "op"):
            found = traced[at].name, traced[at].op
        for key in ("self", "node"):
            node = names.get(key)
            if isinstance(node, Bound) and getattr(node, "name", None):
                found = node.name, type(node).__name__
        trace = trace.tb_next
    return found
