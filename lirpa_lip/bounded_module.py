"""`BoundedModule`: auto_LiRPA's, with local Lipschitz methods; the mathematics is elsewhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import auto_LiRPA
import torch
from auto_LiRPA.utils import unpack_inputs
from torch import Tensor, nn

from lirpa_lip import dispatch
from lirpa_lip.autolirpa.arguments import (
    ordinary,
    ordinary_tensors,
)
from lirpa_lip.autolirpa.ball_repair import BallRepairMixin, install_ball_repair, remove_ball_repair
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import (
    LirpaLipError,
)
from lirpa_lip.network.graph import build_graph
from lirpa_lip.precision import model_precision
from lirpa_lip.results import LipschitzResult
from lirpa_lip.trust.audit import audited
from lirpa_lip.trust.gate import check_at_wrapping
from lirpa_lip.trust.live import follow, remember
from lirpa_lip.trust.model import training_dependent
from lirpa_lip.wrapping.conversion import convert
from lirpa_lip.wrapping.registration import operators

_INIT = inspect.signature(auto_LiRPA.BoundedModule.__init__)


def _before_wrapping(bounded: Any, model: Any, global_input: Any) -> None:
    """Notes what is in training mode, and looks at what the model does, before it is traced."""
    names = training_dependent(model)
    object.__setattr__(bounded, "_in_training_mode", names)
    if names or isinstance(model, auto_LiRPA.BoundedModule) or not isinstance(model, nn.Module):
        return
    try:
        audited(model, _inputs_like(model, global_input))
    except LirpaLipError:
        raise
    except Exception:
        return  # what the model itself fails with is left for the conversion to meet


def _after_wrapping(bounded: Any, model: Any, global_input: Any) -> None:
    """Remembers the model and compares it with what was traced of it."""
    if isinstance(model, auto_LiRPA.BoundedModule):
        return
    remember(bounded, model)
    if bounded._in_training_mode or not isinstance(model, nn.Module):
        return
    try:
        graph = build_graph(bounded, torch.float64)
    except Exception:  # an operator of auto_LiRPA's alone; methods of ours will name it
        graph = None
    with model_precision(bounded):
        check_at_wrapping(bounded, _inputs_like(model, global_input), graph)


def _inputs_like(model: nn.Module, global_input: Any) -> tuple[Tensor, ...]:
    """The inputs a model is wrapped with, on its device."""
    first = next(model.parameters(), None)
    inputs = unpack_inputs(global_input)
    return tuple(t.detach().as_subclass(Tensor).to(t.device if first is None else first.device) for t in inputs)


def _convert(bounded: Any, inherited: Callable, args: tuple, kwargs: dict) -> None:
    """auto_LiRPA's ``__init__``, with our operators for this one module; the model is audited before, compared after.

    Raises:
        UntraceableError: the model does what no trace can carry.
        UnsupportedOperatorError, ShapeError, ConfigError: see `lirpa_lip.wrapping.conversion.convert`.
        TraceMismatchError: the trace is not the model.
    """
    call = _INIT.bind(bounded, *args, **kwargs)
    model, custom = call.arguments["model"], call.arguments.get("custom_ops")
    call.arguments["custom_ops"] = operators(custom)

    def initialise(given: Any) -> None:
        call.arguments["global_input"] = given
        inherited(*call.args[1:], **call.kwargs)

    object.__setattr__(bounded, "last_certificate", None)
    with ordinary_tensors():
        global_input = ordinary(call.arguments["global_input"])
        _before_wrapping(bounded, model, global_input)
        bounded._in_training_mode += convert(bounded, model, global_input, initialise, {"custom_ops": custom})
        bounded.custom_ops = custom or {}  # needed no more, and ours could not be pickled
        _after_wrapping(bounded, model, global_input)


class BoundedModule(BallRepairMixin, auto_LiRPA.BoundedModule):
    """auto_LiRPA's ``BoundedModule`` with local Lipschitz bounds, and valid ℓ₂ bounds for every graph.

    Used exactly as auto_LiRPA's; settings travel as ``bound_opts={"local_lip": LocalLipConfig(...)}``.

    Args:
        model: a module in eval mode, from ``(batch, *shape)`` to one tensor. It is not changed; its weights are read
            anew in every call.
        global_input: an input of that shape, of any batch size, for the trace.
        bound_opts: auto_LiRPA's options, and under ``"local_lip"`` a `LocalLipConfig`, or a dict of its fields.
        auto_lirpa: further arguments of auto_LiRPA's class.

    Raises:
        TrainingModeError: at the first bound, a model in training mode.
        UntraceableError, UnsupportedOperatorError: the model does what a trace cannot carry, or has no rule for.
        TraceMismatchError: the trace does not compute what the model does.
        UnknownMethodError, ConfigError, ShapeError: options or an input that cannot be.

    Example:
        >>> from auto_LiRPA import BoundedTensor
        >>> from lirpa_lip import PerturbationLpNorm
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
        >>> _ = model[0].weight.data.copy_(torch.eye(2)), model[0].bias.data.copy_(torch.tensor([0.0, -5.0]))
        >>> _ = model[2].weight.data.fill_(1.0)
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> bounded = BoundedModule(model, x)  # relu(x₁) + relu(x₂ − 5)
        >>> ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.5)),)
        >>> lower, upper = bounded.compute_bounds(x=ball, method="local-lip")
        >>> print(f"{lower.item():.3f} {upper.item():.3f} {bounded.last_certificate.kind}")
        0.500 1.500 deterministic
        >>> found = bounded.local_lipschitz(x=ball)  # the second neuron is constant on the ball
        >>> print(f"{found.upper.item():.3f} {int(found.eliminated)} of {found.neurons}")
        1.000 1 of 2
    """

    def __init__(self, model: Any, global_input: Any, bound_opts: Any = None, *args: Any, **kwargs: Any) -> None:
        LocalLipConfig.from_options(bound_opts)
        _convert(self, super().__init__, (model, global_input, bound_opts, *args), kwargs)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any):
        """``.to()``, ``.double()`` and their kin: the model goes along."""
        super()._apply(fn, *args, **kwargs)
        follow(self, fn)
        return self

    def check_incompatible_nodes(self, model: Any) -> None:
        """auto_LiRPA would switch a model with dropout to training mode; in eval mode dropout is the identity."""
        if model.training:
            super().check_incompatible_nodes(model)

    def compute_bounds(self, *args: Any, **kwargs: Any):
        """auto_LiRPA's ``compute_bounds``, with three methods more.

        ``method="local-lip"``: ``C f(x₀)`` plus and minus how far it can move, from masked norms over cheap
        pre-activation bounds (interval arithmetic, intersected with the ball of the local radius).
        ``method="local-lip-crown"``: the same over CROWN's pre-activation bounds, intersected with CROWN's bounds.
        ``method="sdp-crown"``: ``"local-lip"``, intersected with SDP-CROWN's relaxation over the *local* balls and
        intervals: every neuron's slope is free, and each row's slopes are optimised. It is ``"local-lip"`` with
        ``LocalLipConfig(optimize=...)``, of 30 steps where none are set.

        Args:
            x: one input and its region, an ℓ₂ ball, possibly cut by a box:
                ``(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=...)),)``.
            C: rows ``(batch, specs, outputs)`` of what is bounded, ``C f``; None for the outputs themselves.
            method: one of the three, or one of auto_LiRPA's, which then takes all of its own arguments.
            bound_lower, bound_upper: False leaves that side out.
            decision_thresh: a number or ``(batch, specs)``; no more is done for lower bounds once they exceed it.

        Returns:
            ``(lower, upper)``, each ``(batch, specs)``, or None for a side that is left out. They hold as the
            certificate kind says, which is afterwards in ``last_certificate`` (`lirpa_lip.results.Certificate`), None
            after auto_LiRPA's own methods; ``LocalLipConfig(seed=bounded.last_seed)`` repeats the run.

        Raises:
            UnknownMethodError: no such method.
            UnsupportedNormError: another norm than ℓ₂.
            UnsupportedOperatorError, ShapeError, NonFiniteError, ConfigError, TrainingModeError: as named.
        """
        return dispatch.compute_bounds(self, super().compute_bounds, args, kwargs)

    def local_lipschitz(
        self, x: Any, C: Tensor | None = None, method: str = "local-lip", norm: float = 2, **options: Any
    ) -> LipschitzResult:
        """Local Lipschitz constants: how fast ``C f`` (or ``f``) can change between any two points of the region.

        Args:
            x: ``(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=...)),)``; a box (``norm=inf``) for Jacobian methods.
            C: rows ``(batch, specs, outputs)``, one constant each; ``None`` for the whole output, ``‖·‖_p → ‖·‖_p``.
            method: ``"local-lip"`` or ``"local-lip-crown"``, which differ in their pre-activation bounds; or
                ``"clarke-jacobian"``, ``"recurjac"``, ``"fastlip"``, ``"naive"``: see `lirpa_lip.jacobian.constants`.
            norm: p, that is 2; for Jacobian methods inf, 2 or 1.
            options: fields of `lirpa_lip.jacobian.constants.ClarkeOptions`, for Jacobian methods.

        Returns:
            `LipschitzResult`; its ``upper`` is ``(batch, specs)``, or ``(batch,)`` for ``C=None``, in units of the
            output over units of the input.

        Raises:
            UnknownMethodError: no such method.
            UnsupportedNormError: a norm, or a region, that the method has no bound for.
            UnsupportedOperatorError, ShapeError, NonFiniteError, ConfigError, TrainingModeError: as named.
        """
        return dispatch.local_lipschitz(self, x, C, method, norm=norm, options=options)


_REGISTERED = ("__init__", "check_incompatible_nodes", "compute_bounds", "_apply", "local_lipschitz")


def register(cls: Any = auto_LiRPA.BoundedModule) -> None:
    """Gives auto_LiRPA's own ``BoundedModule`` the same methods, operators and ℓ₂ repair, in place; idempotent.

    Args:
        cls: that class, or one derived from it.

    Example:
        >>> register()
        >>> hasattr(auto_LiRPA.BoundedModule, "local_lipschitz")
        True
        >>> unregister()
        >>> hasattr(auto_LiRPA.BoundedModule, "local_lipschitz")
        False
    """
    if "local_lipschitz" in cls.__dict__:
        return
    own = {name: vars(cls)[name] for name in _REGISTERED if name in vars(cls)}
    install_ball_repair(cls)
    init, check, compute, apply = cls.__init__, cls.check_incompatible_nodes, cls.compute_bounds, cls._apply

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any):
        _convert(self, functools.partial(init, self), args, kwargs)

    @functools.wraps(apply)
    def _apply(self: Any, fn: Any, *args: Any, **kwargs: Any):
        apply(self, fn, *args, **kwargs)
        follow(self, fn)
        return self

    @functools.wraps(check)
    def check_incompatible_nodes(self: Any, model: Any):
        if model.training:
            check(self, model)

    @functools.wraps(compute)
    def compute_bounds(self: Any, *args: Any, **kwargs: Any):
        return dispatch.compute_bounds(self, functools.partial(compute, self), args, kwargs)

    def local_lipschitz(self: Any, x: Any, C: Any = None, method: Any = "local-lip", norm: Any = 2, **options: Any):
        return dispatch.local_lipschitz(self, x, C, method, norm=norm, options=options)

    for function in (__init__, check_incompatible_nodes, compute_bounds, _apply, local_lipschitz):
        setattr(cls, function.__name__, function)
    cls._before_lirpa_lip = own


def unregister(cls: Any = auto_LiRPA.BoundedModule) -> None:
    """Undoes `register`; nothing happens where it was not called.

    Args:
        cls: the class that was given to it.
    """
    if "local_lipschitz" not in cls.__dict__:
        return
    own = cls._before_lirpa_lip
    for name in _REGISTERED:
        delattr(cls, name)
    del cls._before_lirpa_lip
    remove_ball_repair(cls)
    for name, value in own.items():
        setattr(cls, name, value)
