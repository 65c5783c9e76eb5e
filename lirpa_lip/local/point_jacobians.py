"""Jacobians at points, and what is not known of them: from them, constants are bounded from below.

At a kink automatic differentiation returns *some* slope of each neuron, and the product of such choices need not lie in
the Clarke Jacobian: ``x − relu(x) + relu(−x)`` is zero everywhere, but slope 0 twice at x = 0 makes its derivative 1.
Where rates of all nodes are known, slopes that rounding leaves open are taken off by what they could change; without
them only points count where the network is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lirpa_lip.local.linearised import pull_back
from lirpa_lip.local.rate_errors import RateErrors
from lirpa_lip.network.forward_error import forward_error
from lirpa_lip.network.graph import NetworkGraph, affine_value
from lirpa_lip.network.node import Interval
from lirpa_lip.network.rounding import RowErrors, positive_slack, widest
from lirpa_lip.regions.sizes import safe_norm

#: Share of the terms of a tangent below which it is what their rounding left.
_STILL = 1e-12


class PointJacobians(NamedTuple):
    """Of ``C f`` at points.

    Attributes:
        rows: ``(batch, specs, count, n)``.
        unknown: how far each row may be off, in ℓ₂, ``(batch, specs, count)``; infinite where there is no Jacobian.
            Where rates are not known, rounding is not in it.
    """

    rows: Tensor
    unknown: Tensor


def jacobians_at(graph: NetworkGraph, x: Tensor, seed: Tensor, errors: RateErrors | None = None) -> PointJacobians:
    """Jacobians at points ``x (batch, count, *in)`` for rows of C ``(batch, specs, *out)``."""
    return _plain(graph, x, seed) if errors is None else _certain(graph, x, seed, errors)


def _plain(graph: NetworkGraph, x: Tensor, seed: Tensor) -> PointJacobians:
    slopes, good = point_slopes(graph, x.flatten(0, 1))
    rows = slope_rows(graph, slopes, seed, x.shape[1]).flatten(3)
    good = good.reshape(x.shape[0], 1, x.shape[1])
    return PointJacobians(rows, torch.where(good, 0.0, torch.inf).to(rows.dtype).expand(rows.shape[:3]))


def _certain(graph: NetworkGraph, x: Tensor, seed: Tensor, errors: RateErrors) -> PointJacobians:
    (batch, count), specs = x.shape[:2], seed.shape[1]

    def each(t: Tensor, times: int) -> Tensor:
        return t if len(t) == 1 else t.repeat_interleave(times, dim=0)

    values = graph.values(x.flatten(0, 1))
    off = forward_error(graph, as_intervals(values), graph.dtype)
    slack, centres = {name: each(t, count) for name, t in errors.slack.items()}, {}
    for node in graph.activations:
        assert node.activation is not None
        parent = node.parents[0]
        slopes = node.activation.slope_range(values[parent] - off[parent], values[parent] + off[parent], closed=True)
        slack[node.name] = slopes.radius * each(errors.speed[parent], count)
        centres[node.name] = slopes.centre
    lost = RowErrors(slack, batch * count)
    rows = slope_rows(graph, centres, seed, count, lost).flatten(3)
    total = lost.total * (1 + positive_slack(widest(graph), graph.dtype)) + each(errors.underflow, count)
    unknown = torch.as_tensor(total).expand(batch * count, specs).reshape(batch, count, specs).transpose(1, 2)
    room = positive_slack(4 * (specs + rows.shape[3]), graph.dtype)
    return PointJacobians(rows, unknown + room * safe_norm(rows))


def as_intervals(values: Mapping[str, Tensor]) -> dict[str, Interval]:
    """Values at points as intervals without width."""
    return {name: (value, value) for name, value in values.items()}


def slope_rows(
    graph: NetworkGraph, slopes: Mapping[str, Tensor], seed: Tensor, count: int, errors: RowErrors | None = None
) -> Tensor:
    """Jacobian rows ``(batch, specs, count, *in)`` for slopes ``(batch · count, *shape)``."""
    batch, specs = seed.shape[:2]
    each = {name: t.repeat_interleave(specs, dim=0) for name, t in slopes.items()}
    cotangent = seed.unsqueeze(1).expand(-1, count, *seed.shape[1:]).flatten(0, 2)
    shape = graph[graph.input].shape
    visit = None if errors is None else errors.visit
    pulled = pull_back(graph, graph.output, cotangent, each, visit).get(graph.input)
    if pulled is None:
        pulled = torch.zeros(len(cotangent), *shape, dtype=seed.dtype, device=seed.device)
    return pulled.reshape(batch, count, specs, *shape).transpose(1, 2)


@torch.no_grad()
def point_slopes(graph: NetworkGraph, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Slopes of every activation at points ``x (batch, *shape)``, and where the network is differentiable,
    ``(batch,)``.

    A neuron on a kink does no harm where its own gradient vanishes (a dead window of max pooling, or a pixel that
    meets itself in one): a random tangent that does not move it, but for rounding, tells.
    """
    generator = torch.Generator(device=x.device).manual_seed(0)
    values, moves = {graph.input: x}, {}
    moves[graph.input] = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    slopes: dict[str, Tensor] = {}
    good = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for node in graph:
        if node.maps is not None:
            values[node.name] = affine_value(node, values)
            moves[node.name] = sum(m.forward(moves[p]) for m, p in zip(node.maps, node.parents))
        elif node.activation is not None:
            z, move = values[node.parents[0]], moves[node.parents[0]]
            here = node.activation.slope_at(z)
            slope, sharp = here.centre, ~here.stable & (move != 0)
            if bool(sharp.any()):
                good &= ~(sharp & (move.abs() > _STILL * _summed(graph, node.parents[0], moves))).flatten(1).any(1)
            slopes[node.name] = slope
            values[node.name], moves[node.name] = node.activation.value(z), slope * move
    return slopes, good


def _summed(graph: NetworkGraph, name: str, moves: Mapping[str, Tensor]) -> Tensor:
    """The sizes of what a node's tangent is summed from."""
    node = graph[name]
    if node.maps is None:
        return moves[name].abs()
    return sum(m.abs().forward(moves[p].abs()) for m, p in zip(node.maps, node.parents))


def constant_norms(rows: Tensor, norm: float, whole: bool) -> Tensor:
    """Constants of Jacobians ``(batch, specs, count, n)`` in ℓ_p: ``(batch, specs, count)``, or ``(batch, count)``."""
    if not whole:
        if norm == math.inf:
            return rows.abs().sum(-1)
        return safe_norm(rows) if norm == 2 else rows.abs().amax(-1)
    if norm == math.inf:
        return rows.abs().sum(-1).amax(1)
    if norm == 1:
        return rows.abs().sum(1).amax(-1)
    return torch.linalg.matrix_norm(rows.transpose(1, 2), 2)
