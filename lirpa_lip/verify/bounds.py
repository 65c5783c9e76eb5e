"""Lower bounds of an instance's margins, by every method that is valid on its region."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm, in_region
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.network.intervals import used_intervals
from lirpa_lip.network.linear_bound_errors import linear_bound_rounding
from lirpa_lip.precision import next_below
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.network import Network


@dataclass(frozen=True)
class Bounded:
    """Lower bounds ``(rows,)`` of ``C f + d`` over the region, and what they are worth."""

    lower: Tensor
    certificate: str
    delta: float


def local_bounds(
    network: Network, region: InputRegion, c: Tensor, d: Tensor, method: str, *, config: LocalLipConfig
) -> Bounded:
    """``local-lip`` or ``sdp-crown`` over the ball, cut by the box. A box alone is cut out of the ball around it."""
    bounded = network.bounded(config)
    lower, _ = bounded.compute_bounds(
        x=region_input(region), C=c.unsqueeze(0), method=method, bound_upper=False, decision_thresh=-d.unsqueeze(0)
    )
    return Bounded(_plus(lower.detach()[0], d), *bounded.last_certificate)


def region_input(region: InputRegion) -> tuple[Any]:
    """The region as ℓ₂ methods of ``compute_bounds`` take it: a ball, cut by the box; a box cut out of the ball around
    it."""
    centre, radius = region.enclosing()
    box = {"x_L": region.low, "x_U": region.high} if region.has_box and bool((radius > 0).all()) else {}
    return (in_region(centre, PerturbationLpNorm(norm=2, eps=radius, **box)),)


def crown_bounds(network: Network, region: InputRegion, c: Tensor, d: Tensor, method: str, *, steps: int) -> Bounded:
    """CROWN over the box that encloses the region.

    Args:
        method: ``"crown"``, or ``"alpha-crown"`` with ``steps`` of descent.
    """
    lower = crown_on_boxes(network, *enclosing_box(region), c, d, method=method, steps=steps)
    return Bounded(lower[0], "deterministic", 0.0)


def crown_on_boxes(
    network: Network, low: Tensor, high: Tensor, c: Tensor, d: Tensor, *, method: str = "crown", steps: int = 0
) -> Tensor:
    """Lower bounds ``(batch, rows)`` of ``C f + d`` on boxes ``(batch, *shape)``, in float64 and less what rounding can
    have taken from them.
    """
    bounded = network.bounded(LocalLipConfig(), steps)
    x = in_region((low / 2 + high / 2), PerturbationLpNorm(norm=float("inf"), eps=0.0, x_L=low, x_U=high))
    graph = network_graph(bounded, torch.float64)
    rows = c.expand(len(low), *c.shape)
    # auto_LiRPA tells of its optimiser on standard output, which is for verdicts
    with torch.set_grad_enabled(method == "alpha-crown"), redirect_stdout(io.StringIO()):
        lower, _ = bounded.compute_bounds(x=(x,), C=rows, method=method, bound_upper=False)
    with torch.no_grad():
        used = used_intervals(bounded, graph)
        error = linear_bound_rounding(graph, (low, high), used)[graph.output].flatten(1)
        slack = (rows.abs() * error.unsqueeze(1)).sum(2) * (1 + 1e-6)
    return _plus(lower.detach().flatten(1) - slack, d)


def enclosing_box(region: InputRegion) -> tuple[Tensor, Tensor]:
    """Ends ``(1, *shape)`` of a box that contains the region."""
    if region.radius is None:
        return region.low, region.high
    centre, radius = region.enclosing()
    wide = radius.reshape(-1, *[1] * (centre.ndim - 1))
    low, high = next_below(centre - wide), -next_below(-centre - wide)
    return torch.maximum(low, region.low), torch.minimum(high, region.high)


def _plus(lower: Tensor, d: Tensor) -> Tensor:
    """``lower + d``, rounded down; NaN bounds nothing."""
    total = next_below(next_below(lower.double() + d))
    return torch.where(torch.isnan(total), -torch.inf, total)
