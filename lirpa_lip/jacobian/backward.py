"""Bounds of the entries of the Clarke Jacobian ``C ∂f/∂x``, by linear bound propagation on the backward graph.

The chain rule runs from the output to the input: a cotangent ``g`` passes affine nodes by their adjoints and
activations by ``h = s·g``. Every entry of every cotangent is a linear function of later ones, so that an upper bound
of ``a · g_k`` is found by *pushing the tangent a forward* from node k to the output through the relaxations of the
activations it meets (`push_tangent`). Intervals alone (Fast-Lip's way) cost one pass for all entries; pushing costs
one pass an entry, so it is spent where it pays: on cotangents of changing sign which meet an open slope.

Source: Shi et al., NeurIPS 2022, section 3. Cotangents at an activation mean those of its output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.jacobian.forward import Interval, chunk_size, most_open
from lirpa_lip.jacobian.moving import MovingSlopes
from lirpa_lip.jacobian.products import TIGHT, product_range, products
from lirpa_lip.jacobian.tangents import Backward, push_tangent
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import absolute, gamma, many_children, node_gamma
from lirpa_lip.norms.linear_map import LinearMap


@torch.no_grad()
def backward_bounds(
    graph: NetworkGraph,
    slopes: Mapping[str, SlopeRange],
    seed: Tensor,
    prior_cotangents: Mapping[str, Interval] | None = None,
    form: str = TIGHT,
    *,
    pushes: bool = True,
    entries: int = 0,
    norm: float = math.inf,
    moving: MovingSlopes | None = None,
) -> Backward:
    """Bounds of every cotangent, from the output to the input.

    Args:
        slopes: Clarke slopes of every activation, ``(batch, *shape)``.
        seed: rows of C, ``(batch, rows, *output shape)``.
        prior_cotangents: valid bounds from elsewhere (a parent domain), intersected with those found here.
        form: relaxation, see `jacobian_relax`.
        pushes: tighten the cotangents that need it by pushing tangents; otherwise intervals alone.
        entries: how many entries of the Jacobian to tighten by pushing, for each row: those of changing sign first,
            then the widest; or a mask ``(batch, rows, *in)`` of entries.
        moving: how the slopes of smooth activations follow the input, for the tight form.
    """
    batch, rows = seed.shape[:2]
    prior_cotangents = prior_cotangents or {}
    result = Backward(seed, {}, {graph.output: node_gamma(graph) * seed.abs()}, {}, moving if form == TIGHT else None)
    pending = {graph.output: (seed, torch.zeros_like(seed), torch.zeros_like(seed))}
    for name in reversed(graph.ancestors(graph.output)):
        if name not in pending:
            continue
        node, (centre, radius, rounding) = graph[name], pending.pop(name)
        if node.maps is not None:
            for map_, parent in zip(node.maps, node.parents):
                through, slack = _through(graph, map_, centre, radius, rounding)
                _add(pending, parent, through)
                _add_slack(result, parent, slack)
            continue
        lower, upper = centre - radius, centre + radius
        slack = node_gamma(graph) * (centre.abs() + radius)
        lower, upper, rounding = lower - slack, upper + slack, rounding + slack
        if name in prior_cotangents:
            lower, upper = _cut((lower, upper), prior_cotangents[name])
        result.cotangents[name] = lower, upper
        if node.is_input:
            break
        slope = slopes[name]
        if pushes:
            need = (slope.low < slope.high).unsqueeze(1).expand_as(lower)
            if result.moving is None or name not in result.moving.slope_lines:
                need = need & (lower < 0) & (upper > 0)
            result.cotangents[name] = _tighten(graph, name, result, need | _mostly_rounding(lower, upper, rounding))
        lower, upper = result.cotangents[name]
        result.relaxed[name] = products(slope, lower, upper, form)
        low, high = product_range(slope, lower, upper)
        rounded = node_gamma(graph) * (low.abs() + high.abs())
        rounding = torch.minimum(rounding, (upper - lower) / 2) * slope.magnitude.unsqueeze(1) + rounded
        _add(pending, node.parents[0], ((low + high) / 2, (high - low) / 2 + rounded, rounding))
        _add_slack(result, node.parents[0], _product_slack(graph, name, result, slope))
    if graph.input not in result.cotangents:
        zero = torch.zeros(batch, rows, *graph[graph.input].shape, dtype=seed.dtype, device=seed.device)
        result.cotangents[graph.input], result.slack[graph.input] = (zero, zero), zero
    elif pushes:
        chosen = worthwhile(*result.cotangents[graph.input], norm, entries)
        result.cotangents[graph.input] = _tighten(graph, graph.input, result, chosen)
    return result


def _through(
    graph: NetworkGraph, map_: LinearMap, centre: Tensor, radius: Tensor, rounding: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Centre and radius of ``Aᵀg``, the part of rounding in the radius; and the slack of tangents that pass A."""
    size, rows = centre.shape[:2]
    share = gamma(map_) * many_children(graph)
    rounded = share * (centre.abs() + radius)
    moved = map_.adjoint(centre.flatten(0, 1))
    passed = absolute(graph, map_).adjoint(torch.cat([radius + rounded, rounding + rounded, rounded]).flatten(0, 1))
    wider, rounding, slack = passed.reshape(3 * size, rows, *map_.in_shape).chunk(3)
    return (moved.reshape(size, rows, *map_.in_shape), wider, rounding), slack


#: Of a cotangent's width: the share of rounding, and the size beside the largest cotangent of its node, that a push is
#: worth. Intervals carry rounding on along absolute weights, which outgrows a deep network that contracts.
_ROUNDING, _SEEN = 0.1, 1e-6


def _mostly_rounding(lower: Tensor, upper: Tensor, rounding: Tensor) -> Tensor:
    radius, largest = (upper - lower) / 2, torch.maximum(lower.abs(), upper.abs()).flatten(2).amax(-1)
    largest = largest.reshape(*largest.shape, *[1] * (lower.ndim - 2))
    return (rounding > _ROUNDING * radius) & (radius > _SEEN * largest)


def _product_slack(graph: NetworkGraph, name: str, result: Backward, slope: SlopeRange) -> Tensor:
    """The slack of tangents that pass an activation by its relaxation, or by slopes that move."""
    lower, upper = result.cotangents[name]
    relaxed, largest = result.relaxed[name], torch.maximum(lower.abs(), upper.abs())
    size = slope.magnitude.unsqueeze(1)
    if result.moving is not None and name in result.moving.slope_lines:
        size = size + result.moving.size(graph, name).unsqueeze(1)
    return node_gamma(graph) * (4 * size * largest + torch.maximum(relaxed.low_offset.abs(), relaxed.high_offset.abs()))


def _add_slack(result: Backward, name: str, slack: Tensor) -> None:
    result.slack[name] = result.slack[name] + slack if name in result.slack else slack


def _add(pending: dict, name: str, value: tuple[Tensor, ...]) -> None:
    pending[name] = tuple(a + b for a, b in zip(pending[name], value)) if name in pending else value


def _cut(interval: Interval, other: Interval) -> Interval:
    """Intersection of two valid bounds; rounding may not make it empty."""
    lower, upper = torch.maximum(interval[0], other[0]), torch.minimum(interval[1], other[1])
    return torch.minimum(lower, upper), torch.maximum(lower, upper)


#: Share of a norm's bound that is not worth a push.
_TAIL = 1e-3


def worthwhile(lower: Tensor, upper: Tensor, norm: float, most: int) -> Tensor:
    """Which entries of each row, ``most`` at most, tell in the row's constant; a mask like ``lower``.

    An entry's weight is how far its chord can lie above the convex function that the norm takes of it: for ``|J|`` (ℓ∞)
    that is nothing unless the sign changes, for ``J²`` (ℓ₂) it is a quarter of the squared width. The entries of least
    weight are left out while they sum to less than a thousandth. For ℓ₁, entries that cannot be the largest are.
    """
    low, high = lower.flatten(2), upper.flatten(2)
    worst = torch.maximum(low.abs(), high.abs())
    if norm == math.inf:
        width = torch.where((low < 0) & (high > 0), high - low, 1.0)
        weight, total = -2 * low.clamp(max=0) * high.clamp(min=0) / width, worst.sum(-1, keepdim=True)
    elif norm == 2:
        weight, total = (high - low).square() / 4, worst.square().sum(-1, keepdim=True)
    else:
        sure = torch.maximum(low, -high).clamp(min=0).amax(-1, keepdim=True)
        weight, total = torch.where(worst > sure, high - low, 0.0), torch.zeros_like(sure)
    weight = torch.nan_to_num(weight, nan=torch.inf)
    order = weight.sort(dim=-1, descending=True)
    rest = order.values.flip(-1).cumsum(-1).flip(-1)
    kept = (rest > _TAIL * total) & (order.values > 0)
    kept[..., most:] = False
    return torch.zeros_like(kept).scatter(2, order.indices, kept).reshape(lower.shape)


def _tighten(graph: NetworkGraph, name: str, result: Backward, mask: Tensor) -> Interval:
    """Bounds of the masked cotangents of a node by pushing unit tangents of both signs."""
    lower, upper = result.cotangents[name]
    index, valid = most_open(mask.flatten(2))
    if index.shape[-1] == 0:
        return lower, upper
    batch, rows = mask.shape[:2]
    size = mask[0, 0].numel()
    highs, lows = [], []
    for part in index.split(chunk_size(graph, 2 * batch * rows), dim=-1):
        unit = torch.zeros(*part.shape, size, dtype=lower.dtype, device=lower.device).scatter_(
            3, part.unsqueeze(3), 1.0
        )
        tangents = torch.cat([unit, -unit], dim=2).reshape(batch, rows, -1, *graph[name].shape)
        high, low = push_tangent(graph, name, tangents, result).chunk(2, dim=2)
        highs.append(high)
        lows.append(-low)
    low, high = (torch.cat(p, dim=2) for p in (lows, highs))
    low, high = torch.where(valid, low, -torch.inf), torch.where(valid, high, torch.inf)
    new_lower = lower.flatten(2).scatter_reduce(2, index, low, "amax", include_self=True).reshape(lower.shape)
    new_upper = upper.flatten(2).scatter_reduce(2, index, high, "amin", include_self=True).reshape(upper.shape)
    return torch.minimum(new_lower, new_upper), torch.maximum(new_lower, new_upper)
