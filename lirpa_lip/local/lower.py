"""Lower bounds of Lipschitz constants: norms of Jacobians at points of the region, and differences across its centre.

The centre and random points first; then, from the best, ascent on the norm of a smoothed Jacobian (each kink replaced
by a sigmoid, since the true Jacobian of a piecewise linear network does not move). Where the centre lies on kinks its
Jacobian says nothing for certain; a difference of values across them does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.local.point_jacobians import as_intervals, constant_norms, jacobians_at, slope_rows
from lirpa_lip.local.rate_errors import RateErrors
from lirpa_lip.network.forward_error import forward_error
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.node import Interval
from lirpa_lip.network.rounding import positive_slack
from lirpa_lip.regions.region import Region
from lirpa_lip.regions.sizes import safe_norm

#: Most elements of a batch of rows.
_ELEMENTS = 1 << 23
#: What rounding is taken to change of a Jacobian's norm, where rates are not known.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Effort:
    """How hard a lower bound is looked for.

    Attributes:
        samples: points, the centre among them.
        steps: of ascent, from each of the ``starts`` best of them.
        seed: of the points.
        intervals: bounds of every pre-activation, by which kinks are smoothed; no ascent without them.
    """

    samples: int = 8
    steps: int = 0
    starts: int = 2
    seed: int = 0
    intervals: Mapping[str, Interval] | None = None


@torch.no_grad()
def lower_bounds(
    graph: NetworkGraph,
    region: Region,
    seed: Tensor,
    norm: float = 2,
    *,
    whole: bool,
    effort: Effort,
    errors: RateErrors | None = None,
) -> Tensor:
    """Largest constants found, ``(batch, specs)``, or ``(batch,)`` for the whole matrix; never above the true ones.

    Args:
        seed: rows of C, ``(batch, specs, *output shape)``.
        norm: p of ``‖·‖_p → ‖·‖_p`` of the whole matrix, or ``‖·‖_p → |·|`` of a row: 2, inf or 1.
        errors: by which rounding is taken off, from rates over the region for all pairs of points. Without them it is
            taken for a billionth, in float64, and kinks are kept away from.
    """
    search = _Search(graph, region, seed, norm, whole, errors)
    generator = torch.Generator(device=seed.device).manual_seed(effort.seed)
    centre = region.project(region.centre.unsqueeze(1))
    x = torch.cat([centre, region.sample(max(effort.samples - 1, 1), generator)], dim=1)
    rates = search.rates(x)
    rates = rates.unsqueeze(1) if whole else rates
    best = rates.amax(-1)
    low, high = region.interval()
    if effort.steps and effort.intervals is not None and bool((high > low).any()):
        top = rates.topk(min(effort.starts, rates.shape[-1]), dim=-1).indices
        for k in range(top.shape[-1]):
            best = torch.maximum(best, search.climbed(_take(x, top[..., k]), effort.intervals, effort.steps))
    if errors is None:
        best = best * (1 - _ROUNDING)
    best = best.squeeze(1) if whole else best
    return torch.maximum(best, search.across_centre())


@dataclass(frozen=True)
class _Search:
    graph: NetworkGraph
    region: Region
    seed: Tensor
    norm: float
    whole: bool
    errors: RateErrors | None

    def rates(self, x: Tensor) -> Tensor:
        """Constants at points ``(batch, count, *in)``: ``(batch, specs, count)``, or ``(batch, count)`` if whole; less
        what is not known of them, and 0 where nothing is."""
        widest = max(n.shape.numel() for n in self.graph)
        chunk = max(1, _ELEMENTS // (widest * self.seed.shape[1] * len(x)))
        moves = self.region.moves[:, None, None]
        found = []
        for part in x.split(chunk, dim=1):
            rows, unknown = jacobians_at(self.graph, part, self.seed, self.errors)
            # where a slope is known nowhere, neither is the norm
            known = torch.isfinite(rows).all(-1, keepdim=True).all(1, keepdim=True)
            rows = torch.where(known, rows * moves, 0.0)
            value = constant_norms(rows, self.norm, self.whole) - self._doubt(unknown, rows.shape[-1])
            found.append(value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0))
        return torch.cat(found, dim=-1)

    def _doubt(self, unknown: Tensor, entries: int) -> Tensor:
        """What errors of rows, in ℓ₂, may change of a constant."""
        wide = math.sqrt(entries) if self.norm == math.inf else 1.0
        if not self.whole:
            return wide * unknown
        if self.norm == 1:
            return unknown.sum(1)
        return wide * unknown.amax(1) if self.norm == math.inf else safe_norm(unknown, 1)

    def across_centre(self) -> Tensor:
        """``|c · (f(a) − f(b))| / ‖a − b‖_p`` for points either side of the centre along each row, or
        ``‖C f(a) − C f(b)‖_p`` along the direction that is stretched most; less what rounding may have added."""
        graph, batch, dtype = self.graph, len(self.seed), self.seed.dtype
        c = self.seed.flatten(2)
        rows = jacobians_at(graph, self.region.centre.unsqueeze(1), self.seed, self.errors).rows[:, :, 0]
        rows = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        steps = self._steps(rows * self.region.moves.unsqueeze(1)).reshape(batch, -1, *self.region.shape)
        low, high = (end.unsqueeze(1) for end in self.region.interval())
        middle = self.region.centre.unsqueeze(1)
        ends = [torch.minimum(torch.maximum(middle + sign * steps, low), high) for sign in (1, -1)]
        values = graph.values(torch.cat(ends, dim=1).flatten(0, 1))
        off = forward_error(graph, as_intervals(values), graph.dtype)[graph.output].reshape(batch, 2, -1, c.shape[2])
        found = values[graph.output].reshape(batch, 2, -1, c.shape[2])
        unknown = off.sum(1) + torch.finfo(dtype).eps * found.abs().sum(1)
        change = found[:, 0] - found[:, 1]
        if self.whole:
            change, unknown = (torch.einsum("bso,bko->bks", m, t) for m, t in ((c, change), (c.abs(), unknown)))
            size = torch.einsum("bso,bko->bks", c.abs(), (found[:, 0] - found[:, 1]).abs())
            unknown = unknown + positive_slack(2 * c.shape[2], dtype) * size
            certain = self._length(change) - self._length(unknown)
        else:
            slack = 1 + positive_slack(2 * c.shape[2], dtype)
            certain = (c * change).sum(2).abs() - (c.abs() * (unknown + (slack - 1) * change.abs())).sum(2) * slack
        certain = certain * (1 - positive_slack(4 * c.shape[2], dtype))
        distance = self._length((ends[0] - ends[1]).flatten(2)) * (1 + positive_slack(2 * rows.shape[2], dtype))
        rate = torch.where(distance > 0, certain / torch.where(distance > 0, distance, 1.0), 0.0)
        rate = rate.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
        return rate.squeeze(1) if self.whole else rate

    def _length(self, t: Tensor) -> Tensor:
        return safe_norm(t) if self.norm == 2 else torch.linalg.vector_norm(t, self.norm, dim=-1)

    def _steps(self, rows: Tensor) -> Tensor:
        """From the centre to an end, ``(batch, specs or 1, n)``: as far as the region goes in the best direction."""
        if self.norm == 2:
            steep = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1] if self.whole else rows
        elif self.norm == math.inf:
            at = rows.abs().sum(-1).argmax(1) if self.whole else None
            steep = (rows if at is None else rows[torch.arange(len(rows)), at].unsqueeze(1)).sign()
        else:
            sizes = rows.abs().sum(1, keepdim=True) if self.whole else rows.abs()
            steep = torch.zeros_like(sizes).scatter(2, sizes.argmax(-1, keepdim=True), 1.0)
        if self.region.radius is not None:
            length, reach = safe_norm(steep), self.region.radius.reshape(-1, 1)
            reach = reach * (1 - 4 * rows.shape[2] * torch.finfo(rows.dtype).eps)
        else:
            low, high = (end.flatten(1) for end in self.region.interval())
            width = torch.where(high > low, high - low, torch.inf).amin(1) / 2
            length, reach = steep.abs().amax(-1), torch.where(torch.isfinite(width), width, 0.0).unsqueeze(1)
        scale = torch.where(length > 0, reach / torch.where(length > 0, length, 1.0), 0.0)
        return steep * scale.unsqueeze(2)

    def climbed(self, x: Tensor, intervals: Mapping[str, Interval], steps: int) -> Tensor:
        """Ascent from points ``(batch, specs or 1, *in)``; the best true rate on the way."""
        region, (batch, count) = self.region, x.shape[:2]
        low, high = region.interval()
        width, ones = (high - low).unsqueeze(1), [1] * len(region.shape)
        best = torch.zeros(batch, count, dtype=self.seed.dtype, device=self.seed.device)
        for step in range(steps):
            gradient = self._smooth_gradient(x, intervals, sharpness=4.0 * (1 + step))
            rate = 0.5 * (1 - step / steps) + 0.02
            if region.radius is None:
                x = x + rate * width * gradient.sign() / 2
            else:
                length = safe_norm(gradient.flatten(2)).clamp(min=1e-30).reshape(batch, count, *ones)
                x = x + 2 * rate * region.radius.reshape(-1, 1, *ones) * gradient / length
            x = region.project(x)
            values = self.rates(x)
            best = torch.maximum(best, values if self.whole else values.diagonal(dim1=1, dim2=2))
        return best

    def _smooth_gradient(self, x: Tensor, intervals: Mapping[str, Interval], sharpness: float) -> Tensor:
        """Gradient in x of the constant with each kink smoothed, at points ``(batch, specs or 1, *in)``."""
        count = x.shape[1]
        with torch.enable_grad():
            point = x.flatten(0, 1).detach().requires_grad_()
            values = self.graph.values(point)
            slopes = {}
            for node in self.graph.activations:
                assert node.activation is not None
                lower, upper = (t.repeat_interleave(count, dim=0) for t in intervals[node.parents[0]])
                scale = sharpness / (upper - lower).clamp(min=1e-12)
                slopes[node.name] = node.activation.smoothed_slope(values[node.parents[0]], scale)
            rows = self.seed if self.whole else self.seed.flatten(0, 1).unsqueeze(1)
            found = slope_rows(self.graph, slopes, rows, 1)
            if not found.requires_grad:
                return torch.zeros_like(x)
            objective = constant_norms(found.flatten(3), self.norm, self.whole).sum()
            (gradient,) = torch.autograd.grad(objective, point, allow_unused=True)
        return torch.zeros_like(x) if gradient is None else torch.nan_to_num(gradient).reshape(x.shape)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """``x (batch, count, *in)`` at ``index (batch, specs)``."""
    flat = x.flatten(2)
    taken = flat.gather(1, index.unsqueeze(2).expand(-1, -1, flat.shape[2]))
    return taken.reshape(*index.shape, *x.shape[2:])
