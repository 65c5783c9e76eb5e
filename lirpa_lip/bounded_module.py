"""`BoundedModule`: auto_LiRPA's, with local Lipschitz methods. Dispatches ``method=``; the mathematics is elsewhere."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import auto_LiRPA
import torch
from torch import Tensor, nn

from .ball_repair import BallRepairMixin, install_ball_repair, remove_ball_repair
from .config import LocalLipConfig
from .errors import (
    ConfigError,
    LirpaLipError,
    MethodFailedError,
    TrainingModeError,
    UnknownMethodError,
    UnsupportedNormError,
    UnsupportedOperatorError,
)
from .jacobian_lip import JACOBIAN_METHODS, jacobian_constants_of
from .lirpa_call import guarded
from .local_lip import CONSTANT_METHODS, METHODS, local_lip_bounds, local_lip_constants
from .operators.registration import operators, unsupported_operators
from .operators.table import ADAPTERS
from .perturbation import PerturbationLpNorm
from .precision import true_float32
from .result import LipschitzResult

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
_TRAINING_DEPENDENT = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
_SIGNATURE = inspect.signature(auto_LiRPA.BoundedModule.compute_bounds)
_INIT = inspect.signature(auto_LiRPA.BoundedModule.__init__)


@true_float32()
def _compute_bounds(bounded, inherited: Callable, args: tuple, kwargs: dict):
    """``compute_bounds``: our methods here, all others to auto_LiRPA."""
    call = _SIGNATURE.bind(bounded, *args, **kwargs).arguments
    method = call.get("method", _SIGNATURE.parameters["method"].default)
    name = method.lower() if isinstance(method, str) else method
    if name not in METHODS:
        if isinstance(name, str) and name.startswith("dynamic-forward"):
            args, kwargs = args[1:] if args else (), {**kwargs, "x": _explicit_boxes(call.get("x"))}
        with _model_precision(bounded), _operator_named(name), _known_to_auto_lirpa(name):
            return guarded(bounded, method, lambda: inherited(*args, **kwargs))
    want_lower, want_upper = call.get("bound_lower", True), call.get("bound_upper", True)
    if not (want_lower or want_upper):
        raise ConfigError("at least one of bound_lower and bound_upper must be True.")
    _check_mode(bounded)
    wanted = (want_lower, want_upper, call.get("decision_thresh"))
    bounds = local_lip_bounds(bounded, call.get("x"), call.get("C"), name, *wanted)
    object.__setattr__(bounded, "last_certificate", bounds[2:])
    return bounds[:2]


@contextmanager
def _model_precision(module: nn.Module) -> Iterator[None]:
    """auto_LiRPA makes some of its tensors in torch's default type, and then fails on a network of another."""
    before = torch.get_default_dtype()
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    torch.set_default_dtype(first.dtype if first is not None else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _explicit_boxes(x: Any) -> Any:
    """Inputs whose boxes are given by their ends, in auto_LiRPA's own class, as its dynamic forward bounds ask."""
    if isinstance(x, (tuple, list)):
        return tuple(_explicit_boxes(part) for part in x)
    region = getattr(x, "ptb", None)
    if not isinstance(region, PerturbationLpNorm) or not math.isinf(region.norm):
        return x
    centre = x.as_subclass(Tensor)
    eps = torch.as_tensor(region.eps).to(centre).reshape(-1, *[1] * (centre.ndim - 1))
    low = centre - eps if region.x_L is None else region.x_L
    high = centre + eps if region.x_U is None else region.x_U
    box = PerturbationLpNorm.__mro__[1]
    return auto_LiRPA.BoundedTensor(
        centre, box(norm=region.norm, x_L=low.expand_as(centre), x_U=high.expand_as(centre))
    )


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


@true_float32()
def _local_lipschitz(bounded, x, c: Tensor | None, method: str, norm: float, options: dict) -> LipschitzResult:
    if method in JACOBIAN_METHODS:
        _check_mode(bounded)
        return jacobian_constants_of(bounded, x, c, method, norm, options)
    if method not in CONSTANT_METHODS:
        raise UnknownMethodError(method, CONSTANT_METHODS + JACOBIAN_METHODS)
    if norm != 2:
        raise UnsupportedNormError(norm, f"method={method!r}", (2,))
    if options:
        raise UnknownMethodError(next(iter(options)), ("x", "C", "method", "norm"), kind="argument")
    _check_mode(bounded)
    return local_lip_constants(bounded, x, c, method)


def _check_mode(bounded) -> None:
    for name in getattr(bounded, "_in_training_mode", ()):
        raise TrainingModeError(name, "BatchNorm or Dropout")


def _note_training_mode(bounded, model) -> None:
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    names = [name or "model" for name, m in modules if isinstance(m, _TRAINING_DEPENDENT) and m.training]
    object.__setattr__(bounded, "_in_training_mode", names)


def _convert(bounded, inherited: Callable, args: tuple, kwargs: dict) -> None:
    """auto_LiRPA's ``__init__``, with our operators for this one module.

    Raises:
        UnsupportedOperatorError: naming the first operator that nobody knows.
    """
    call = _INIT.bind(bounded, *args, **kwargs)
    model, custom = call.arguments["model"], call.arguments.get("custom_ops")
    call.arguments["custom_ops"] = operators(custom)
    try:
        with _model_precision(model):
            inherited(*call.args[1:], **call.kwargs)
    except NotImplementedError as error:
        if isinstance(error, UnsupportedOperatorError):
            raise
        missing = unsupported_operators(model, call.arguments["global_input"], {"custom_ops": custom})
        if not missing:
            raise
        raise UnsupportedOperatorError(*missing[0], ADAPTERS, "auto_LiRPA cannot trace it") from error
    bounded.custom_ops = custom or {}  # needed no more, and ours could not be pickled


class BoundedModule(BallRepairMixin, auto_LiRPA.BoundedModule):
    """auto_LiRPA's ``BoundedModule`` with local Lipschitz bounds, and valid ℓ₂ bounds for every graph.

    Used exactly as auto_LiRPA's; settings travel as ``bound_opts={"local_lip": LocalLipConfig(...)}``.
    """

    def __init__(self, model, global_input, bound_opts=None, *args, **kwargs) -> None:
        LocalLipConfig.from_options(bound_opts)
        _note_training_mode(self, model)
        _convert(self, super().__init__, (model, global_input, bound_opts, *args), kwargs)

    def check_incompatible_nodes(self, model) -> None:
        """auto_LiRPA would switch a model with dropout to training mode; in eval mode dropout is the identity."""
        if model.training:
            super().check_incompatible_nodes(model)

    def compute_bounds(self, *args, **kwargs):
        """auto_LiRPA's ``compute_bounds``, with three methods more.

        ``method="local-lip"``: ``C f(x₀)`` plus and minus how far it can move, from masked norms over cheap
        pre-activation bounds (interval arithmetic, intersected with the ball of the local radius).
        ``method="local-lip-crown"``: the same over CROWN's pre-activation bounds, intersected with CROWN's bounds.
        ``method="sdp-crown"``: ``"local-lip"``, intersected with SDP-CROWN's relaxation over the *local* balls and
        intervals: every neuron's slope is free, and each row's slopes are optimised. It is ``"local-lip"`` with
        ``LocalLipConfig(optimize=...)``, of 30 steps where none are set.

        With ``decision_thresh``, a number or ``(batch, specs)``, no more is done for lower bounds once they exceed it.

        All are for one input in an ℓ₂ ball, ``x=(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=...)),)``, and
        return ``(lower, upper)``, each ``(batch, specs)``, with ``None`` for what ``bound_lower=False`` or
        ``bound_upper=False`` leaves out. They hold as the certificate kind says, which is afterwards in
        ``last_certificate`` as ``(kind, failure probability)``.

        Raises:
            UnknownMethodError: no such method.
            UnsupportedNormError: another norm than ℓ₂.
            UnsupportedOperatorError, ShapeError, NonFiniteError, ConfigError, TrainingModeError: as named.
        """
        return _compute_bounds(self, super().compute_bounds, args, kwargs)

    def local_lipschitz(
        self, x, C: Tensor | None = None, method: str = "local-lip", norm: float = 2, **options
    ) -> LipschitzResult:
        """Local Lipschitz constants: how fast ``C f`` (or ``f``) can change between any two points of the region.

        Args:
            x: ``(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=...)),)``; a box (``norm=inf``) for Jacobian methods.
            C: rows ``(batch, specs, outputs)``, one constant each; ``None`` for the whole output, ``‖·‖_p → ‖·‖_p``.
            method: ``"local-lip"`` or ``"local-lip-crown"``, which differ in their pre-activation bounds; or
                ``"clarke-jacobian"``, ``"recurjac"``, ``"fastlip"``, ``"naive"``: see `lirpa_lip.lipschitz.clarke`.
            norm: p. 2; for Jacobian methods inf, 2 or 1.
            options: fields of `lirpa_lip.lipschitz.clarke.ClarkeOptions`, for Jacobian methods.

        Returns:
            `LipschitzResult`; its ``upper`` is ``(batch, specs)``, or ``(batch,)`` for ``C=None``.
        """
        return _local_lipschitz(self, x, C, method, norm, options)


_REGISTERED = ("__init__", "check_incompatible_nodes", "compute_bounds", "local_lipschitz")


def register(cls: Any = auto_LiRPA.BoundedModule) -> None:
    """Gives auto_LiRPA's own ``BoundedModule`` the same methods, operators and ℓ₂ repair, in place; idempotent."""
    if "local_lipschitz" in cls.__dict__:
        return
    own = {name: vars(cls)[name] for name in _REGISTERED if name in vars(cls)}
    install_ball_repair(cls)
    init, check, compute = cls.__init__, cls.check_incompatible_nodes, cls.compute_bounds

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        _note_training_mode(self, kwargs.get("model", args[0] if args else None))
        _convert(self, functools.partial(init, self), args, kwargs)

    @functools.wraps(check)
    def check_incompatible_nodes(self, model):
        if model.training:
            check(self, model)

    @functools.wraps(compute)
    def compute_bounds(self, *args, **kwargs):
        return _compute_bounds(self, functools.partial(compute, self), args, kwargs)

    def local_lipschitz(self, x, C=None, method="local-lip", norm=2, **options):
        return _local_lipschitz(self, x, C, method, norm, options)

    for function in (__init__, check_incompatible_nodes, compute_bounds, local_lipschitz):
        setattr(cls, function.__name__, function)
    cls._before_lirpa_lip = own


def unregister(cls: Any = auto_LiRPA.BoundedModule) -> None:
    """Undoes `register`."""
    if "local_lipschitz" not in cls.__dict__:
        return
    own = cls._before_lirpa_lip
    for name in _REGISTERED:
        delattr(cls, name)
    del cls._before_lirpa_lip
    remove_ball_repair(cls)
    for name, value in own.items():
        setattr(cls, name, value)
