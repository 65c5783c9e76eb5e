"""Certification methods by name, ours and others', behind one call: what comparisons and benchmarks run.

A method takes a batch, rows ``C`` and a radius and returns lower bounds of ``C f`` over the balls. Adding one is a
class with ``lower`` here, one row of `lirpa_lip.methods`, and its factory here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm, methods
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import UnknownMethodError
from lirpa_lip.jacobian.mean_value import mean_value_bounds
from lirpa_lip.local.baselines import global_layers, global_lipschitz, relaxed_lower, sdp_crown_layers
from lirpa_lip.local.bounds import CONSTANT_METHODS, outward_upper, prepare
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region
from lirpa_lip.results import DETERMINISTIC, Certificate, Certified, LipschitzResult
from lirpa_lip.search.bounds import prepare_region


@dataclass(frozen=True)
class Bounds(Certified):
    """Lower bounds ``(batch, specs)`` of ``C f``, and what they are worth."""

    lower: Tensor
    worth: Certificate = DETERMINISTIC


class Lirpa:
    """auto_LiRPA's own bounds, through our ``BoundedModule``, which repairs them under ℓ₂."""

    def __init__(self, model: nn.Module, sample: Tensor, name: str, steps: int, config: LocalLipConfig) -> None:
        self.name = name
        options = {"optimize_bound_args": {"iteration": steps}} if name == "alpha-crown" else None
        self.bounded = BoundedModule(model, torch.zeros_like(sample), bound_opts=options)

    def lower(self, x: Tensor, c: Tensor, eps: float) -> Bounds:
        optimised = self.name == "alpha-crown"
        with torch.enable_grad() if optimised else nullcontext():
            lower, _ = self.bounded.compute_bounds(x=(ball(x, eps),), C=c, method=self.name, bound_upper=False)
        return Bounds(lower.detach() if optimised else lower)

    def lipschitz(self, x: Tensor, c: Tensor, eps: float) -> LipschitzResult | None:
        """A Lipschitz constant of the rows on the balls, where the method is made of one."""
        return None


class Local:
    """``method="local-lip"``, ``"local-lip-crown"`` or ``"sdp-crown"``, with changed settings.

    Rows are worked on until their sign is known.
    """

    def __init__(self, model: nn.Module, sample: Tensor, name: str, config: LocalLipConfig) -> None:
        self.name = name
        self.bounded = BoundedModule(model, torch.zeros_like(sample), bound_opts={"local_lip": config})

    def lower(self, x: Tensor, c: Tensor, eps: float) -> Bounds:
        call = dict(C=c, method=self.name, bound_upper=False, decision_thresh=0.0)
        lower, _ = self.bounded.compute_bounds(x=(ball(x, eps),), **call)
        return Bounds(lower, self.bounded.last_certificate)

    def lipschitz(self, x: Tensor, c: Tensor, eps: float) -> LipschitzResult | None:
        if self.name not in CONSTANT_METHODS:
            return None
        return self.bounded.local_lipschitz(x=(ball(x, eps),), C=c, method=self.name)


@dataclass(frozen=True)
class GlobalRows:
    """What a global bound knows of rows: their values at the samples, and their constants, ``(batch, specs)``."""

    at: Tensor
    value: Tensor
    dtype: torch.dtype

    @property
    def upper(self) -> Tensor:
        return outward_upper(self.value, self.dtype)

    def lower(self, eps: float | Tensor) -> Tensor:
        """Lower bounds on balls of radius ``eps``, a number or ``(batch,)``."""
        eps = torch.as_tensor(eps, dtype=self.value.dtype, device=self.value.device)
        return -outward_upper(eps.reshape(-1, 1) * self.value - self.at, self.dtype)


class Global:
    """Norms of the unmasked layers, taken once; ``steps`` > 0 for SDP-CROWN's relaxation over their balls."""

    def __init__(
        self, model: nn.Module, sample: Tensor, config: LocalLipConfig, composed: bool = False, steps: int = 0
    ) -> None:
        self.config = replace(config, bound="auto" if composed else "product", image_box=None)
        self.composed, self.steps = composed, steps
        self.bounded = BoundedModule(model, torch.zeros_like(sample), bound_opts={"local_lip": self.config})
        graph, _, _ = prepare(self.bounded, ball(sample, 0.0), self.config)
        self.norm = NormBudget(self.config, planned_norms(graph, self.config))
        self.layers = global_layers(graph, self.norm, composed)

    def rows(self, x: Tensor, c: Tensor) -> GlobalRows:
        """Constants of the rows, and their values at ``x``, from which bounds at any radius follow."""
        graph, region, dtype = prepare(self.bounded, ball(x, 0.0), self.config)
        c = c.to(graph.dtype)
        value = global_lipschitz(graph, c, self.layers, self.composed)
        return GlobalRows(centre_rows(graph, region, c), value, dtype)

    def lower(self, x: Tensor, c: Tensor, eps: float) -> Bounds:
        if not self.steps:
            return Bounds(self.rows(x, c).lower(eps), self.norm.worth)
        graph, region, dtype = prepare(self.bounded, ball(x, eps), self.config)
        c = c.to(graph.dtype)
        around = sdp_crown_layers(graph, region, self.layers)
        lower = relaxed_lower(graph, region, c, around, self.steps)
        return Bounds(-outward_upper(-lower, dtype), self.norm.worth)

    def lipschitz(self, x: Tensor, c: Tensor, eps: float) -> LipschitzResult | None:
        if self.steps:
            return None
        upper = self.rows(x, c).upper
        return LipschitzResult(upper, torch.zeros_like(upper), self.norm.worth)


class MeanValue:
    """The mean value bound from the Clarke Jacobian over the ball."""

    def __init__(self, model: nn.Module, sample: Tensor, config: LocalLipConfig) -> None:
        self.bounded = BoundedModule(model, torch.zeros_like(sample), bound_opts={"local_lip": config})

    def lower(self, x: Tensor, c: Tensor, eps: float) -> Bounds:
        graph, inputs, dtype = prepare_region(self.bounded, ball(x, eps))
        seed = c.to(graph.dtype).reshape(*c.shape[:2], *graph[graph.output].shape)
        lower, _ = mean_value_bounds(graph, inputs, seed)
        return Bounds(-outward_upper(-lower, dtype))

    def lipschitz(self, x: Tensor, c: Tensor, eps: float) -> LipschitzResult:
        return self.bounded.local_lipschitz(x=(ball(x, eps),), C=c, method="clarke-jacobian", norm=2)


Comparable = Lirpa | Local | Global | MeanValue
Factory = Callable[[nn.Module, Tensor, int, LocalLipConfig], Comparable]
_BOX = (0.0, 1.0)
#: Steps for each one of α-CROWN: of ours, which are cheaper, and of SDP-CROWN's, whose slopes start far from their
#: optimum; its authors take hundreds.
_FREE_STEPS, _SDP_STEPS = 1.5, 5


def _lirpa(name: str) -> Factory:
    return lambda model, sample, steps, config: Lirpa(model, sample, name, steps, config)


def _local(name: str = "local-lip", optimize: bool = False, **changes: Any) -> Factory:
    def make(model: nn.Module, sample: Tensor, steps: int, config: LocalLipConfig) -> Local:
        changed = replace(config, **changes)
        return Local(
            model, sample, name, replace(changed, optimize=max(1, int(_FREE_STEPS * steps))) if optimize else changed
        )

    return make


_FACTORIES: dict[str, Factory] = {
    **{name: _lirpa(name) for name in ("ibp", "crown-ibp", "crown", "alpha-crown")},
    "global-product": lambda m, x, n, s: Global(m, x, s),
    "global-composed": lambda m, x, n, s: Global(m, x, s, composed=True),
    "local-product": _local(bound="product"),
    "local-composed": _local(bound="composed"),
    "local-lip": _local(bound="auto"),
    "local-lip-crown": _local("local-lip-crown", bound="auto"),
    "local-lip-tight": _local(bound="auto", tighten=-1, image_box=_BOX),
    "sdp-crown": _local("sdp-crown", bound="auto", optimize=True),
    "sdp-crown-tight": _local("sdp-crown", bound="auto", optimize=True, tighten=-1, image_box=_BOX),
    "sdp-crown-global": lambda m, x, n, s: Global(m, x, s, steps=_SDP_STEPS * n),
    "clarke-jacobian": lambda m, x, n, s: MeanValue(m, x, s),
}
#: Name -> (factory of (model, sample, optimisation steps, settings), what it is): `lirpa_lip.methods` with its makers.
METHODS: dict[str, tuple[Factory, str]] = {
    name: (_FACTORIES[name], methods.METHODS[name].bounds) for name in methods.names_at("compare")
}


def make_method(
    name: str, model: nn.Module, sample: Tensor, steps: int = 20, config: LocalLipConfig | None = None
) -> Comparable:
    """The method ``name`` for a model in eval mode whose inputs look like ``sample``.

    Args:
        steps: of optimised methods.
        config: settings of the norms (certificate, delta) for methods that take any.

    Raises:
        UnknownMethodError: no such method.
    """
    if name not in METHODS:
        raise UnknownMethodError(name, METHODS)
    return METHODS[name][0](model, sample[:1], steps, config or LocalLipConfig())


def centre_rows(graph: NetworkGraph, region: Region, c: Tensor) -> Tensor:
    """``C f(x₀)``, ``(batch, specs)``."""
    return torch.einsum("bso,bo->bs", c, graph.values(region.centre)[graph.output].flatten(1))


def ball(x: Tensor, eps: float) -> BoundedTensor:
    """``x`` with the ℓ₂ ball of radius ``eps`` attached."""
    return BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps))
