"""Where a ``method=`` goes: ours to `local` and `search`, all others to auto_LiRPA, whose answers are checked."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import auto_LiRPA
import torch
from torch import Tensor

from lirpa_lip.autolirpa.arguments import (
    check_input,
    check_rows,
    ordinary,
    ordinary_tensors,
    prepare_call,
    some_parameter,
)
from lirpa_lip.autolirpa.calls import guarded
from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm, in_region
from lirpa_lip.errors import (
    ConfigError,
    LirpaLipError,
    MethodFailedError,
    TrainingModeError,
    UnknownMethodError,
    UnsupportedNormError,
    UnsupportedOperatorError,
)
from lirpa_lip.local.bounds import CONSTANT_METHODS, METHODS, local_lip_bounds, local_lip_constants
from lirpa_lip.precision import model_precision, next_above, next_below, true_float32
from lirpa_lip.results import LipschitzResult
from lirpa_lip.search.bounds import JACOBIAN_METHODS, jacobian_constants_of
from lirpa_lip.trust.inherited import checked_bounds

_HAS_DYNAMIC_FORWARD = "dynamic-forward" in (auto_LiRPA.BoundedModule.compute_bounds.__doc__ or "")


#: What auto_LiRPA's own compute_bounds understands, in both supported versions; each knows more, and is asked.
LIRPA_METHODS = (
    "ibp",
    "crown-ibp",
    "ibp+backward",
    "ibp+crown",
    "crown",
    "backward",
    "forward",
    "forward+backward",
    "forward+crown",
    "crown-optimized",
    "alpha-crown",
    "forward-optimized",
    *(("dynamic-forward", "dynamic-forward+backward", "dynamic-forward+crown") if _HAS_DYNAMIC_FORWARD else ()),
)

_SIGNATURE = inspect.signature(auto_LiRPA.BoundedModule.compute_bounds)


@ordinary_tensors()
@true_float32()
def compute_bounds(bounded: Any, inherited: Callable, args: tuple, kwargs: dict):
    """``compute_bounds``: our methods here, all others to auto_LiRPA."""
    object.__setattr__(bounded, "last_certificate", None)  # what an earlier call was worth says nothing of this one
    bound = _SIGNATURE.bind(bounded, *args, **kwargs)
    call = bound.arguments
    method = call.get("method", _SIGNATURE.parameters["method"].default)
    name = method.lower() if isinstance(method, str) else method
    if name not in METHODS:
        prepare_call(bounded, bound, name)
        if isinstance(name, str) and name.startswith("dynamic-forward"):
            call["x"] = _explicit_boxes(call.get("x"))

        def run() -> Any:
            return guarded(bounded, method, lambda: inherited(*bound.args[1:], **bound.kwargs))

        named = _operator_named(name), _known_to_auto_lirpa(name)
        with some_parameter(bounded, call["x"]), model_precision(bounded), named[0], named[1]:
            return checked_bounds(bounded, call, run)
    want_lower, want_upper = call.get("bound_lower", True), call.get("bound_upper", True)
    if not (want_lower or want_upper):
        raise ConfigError("at least one of bound_lower and bound_upper must be True.")
    _check_mode(bounded)
    wanted = {"want_lower": want_lower, "want_upper": want_upper, "threshold": call.get("decision_thresh")}
    x = ordinary(call.get("x"))
    c = ordinary(check_rows(call.get("C"), check_input(bounded, x)))
    bounds = local_lip_bounds(bounded, x, c, name, **wanted)
    object.__setattr__(bounded, "last_certificate", bounds.worth)
    object.__setattr__(bounded, "last_seed", bounds.seed)
    return bounds.lower, bounds.upper


def _explicit_boxes(x: Any) -> Any:
    """Inputs whose boxes are given by their ends, in auto_LiRPA's own class, as its dynamic forward bounds ask."""
    if isinstance(x, (tuple, list)):
        return tuple(_explicit_boxes(part) for part in x)
    region = getattr(x, "ptb", None)
    if not isinstance(region, PerturbationLpNorm) or not math.isinf(region.norm):
        return x
    centre = x.as_subclass(Tensor)
    eps = torch.as_tensor(region.eps).to(centre).reshape(-1, *[1] * (centre.ndim - 1))
    low = next_below(centre - eps) if region.x_L is None else region.x_L
    high = next_above(centre + eps) if region.x_U is None else region.x_U
    box = PerturbationLpNorm.__mro__[1]
    return in_region(centre, box(norm=region.norm, x_L=low.expand_as(centre), x_U=high.expand_as(centre)))


@contextmanager
def _known_to_auto_lirpa(name: object) -> Iterator[None]:
    """A method in no list of ours is auto_LiRPA's to know; where it fails on one, the lists are what to choose from."""
    try:
        yield
    except Exception as error:
        listed = not isinstance(name, str) or name in LIRPA_METHODS
        if listed or (isinstance(error, LirpaLipError) and not isinstance(error, MethodFailedError)):
            raise
        raise UnknownMethodError(name, METHODS + LIRPA_METHODS) from error


@contextmanager
def _operator_named(method: object) -> Iterator[None]:
    """Says which operator an auto_LiRPA method has no rule for, and what does work."""
    try:
        yield
    except NotImplementedError as error:
        found = re.search(r'`(\w+)` of `(\w+)\(name="(.*?)"\)`', str(error))
        if found is None or isinstance(error, UnsupportedOperatorError):
            raise
        function, operator, node = found.groups()
        reason = f"auto_LiRPA has no {function} for it, which method={method!r} needs; method='local-lip' does without"
        raise UnsupportedOperatorError(node, operator, reason=reason) from error


@ordinary_tensors()
@true_float32()
def local_lipschitz(
    bounded: Any, x: Any, c: Tensor | None, method: str, *, norm: float, options: dict
) -> LipschitzResult:
    object.__setattr__(bounded, "last_certificate", None)
    found = _constants(bounded, ordinary(x), c, method, norm, options)
    object.__setattr__(bounded, "last_certificate", found.worth)
    return found


def _constants(bounded: Any, x: Any, c: Tensor | None, method: str, norm: float, options: dict) -> LipschitzResult:
    c = ordinary(check_rows(c, check_input(bounded, x)))
    if method in JACOBIAN_METHODS:
        _check_mode(bounded)
        return jacobian_constants_of(bounded, x, c, method, norm, options=options)
    if method not in CONSTANT_METHODS:
        raise UnknownMethodError(method, CONSTANT_METHODS + JACOBIAN_METHODS)
    if norm != 2:
        raise UnsupportedNormError(norm, f"method={method!r}", (2,))
    if options:
        raise UnknownMethodError(next(iter(options)), ("x", "C", "method", "norm"), kind="argument")
    _check_mode(bounded)
    return local_lip_constants(bounded, x, c, method)


def _check_mode(bounded: Any) -> None:
    for name in getattr(bounded, "_in_training_mode", ()):
        raise TrainingModeError(name, "BatchNorm or Dropout")
