"""Lower bounds: norms of Jacobians at points of the region, sampled, then climbed to by gradients.

Only points where the network is differentiable count. At a kink automatic differentiation returns *some* slope of each
neuron, and the product of such choices need not lie in the Clarke Jacobian: ``x − relu(x) + relu(−x)`` is zero
everywhere, but slope 0 twice at x = 0 makes its derivative 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.jacobian.forward import Forward
from lirpa_lip.local.linearised import pull_back
from lirpa_lip.network.graph import NetworkGraph, affine_value
from lirpa_lip.regions.input_set import InputSet
from lirpa_lip.regions.region import safe_norm

#: Share of the terms of a tangent below which it is what their rounding left.
_STILL = 1e-12
#: Most elements of a batch of rows.
_ELEMENTS = 1 << 23


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


@torch.no_grad()
def rates_at(graph: NetworkGraph, x: Tensor, seed: Tensor, norm: float, whole: bool, moves: Tensor) -> Tensor:
    """Constants of the Jacobian at points ``x (batch, count, *in)``: ``(batch, rows, count)``, or ``(batch, count)``
    if whole.

    Zero at points where the network is not differentiable. ``moves (batch, n)`` is 0 for columns to leave out.
    """
    batch = len(x)
    chunk = max(1, _ELEMENTS // (max(n.shape.numel() for n in graph) * seed.shape[1] * batch))
    found = []
    for part in x.split(chunk, dim=1):
        jacobian, good = jacobians_at(graph, part, seed)
        values = _norms(jacobian * moves[:, None, None], norm, whole)
        found.append(torch.where(good if whole else good.unsqueeze(1), values, 0.0))
    return torch.cat(found, dim=-1)


def jacobians_at(graph: NetworkGraph, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobian rows at points ``x (batch, count, *in)``, ``(batch, rows, count, n)``, and where they exist ``(batch,
    count)``."""
    slopes, good = point_slopes(graph, x.flatten(0, 1))
    return _rows(graph, slopes, seed, x.shape[1]).flatten(3), good.reshape(x.shape[:2])


def _rows(graph: NetworkGraph, slopes: Mapping[str, Tensor], seed: Tensor, size: int) -> Tensor:
    """Jacobian rows ``(batch, rows, size, *in)`` for slopes ``(batch · size, *shape)``."""
    batch, rows = seed.shape[:2]
    spread = {name: t.repeat_interleave(rows, dim=0) for name, t in slopes.items()}
    cotangent = seed.unsqueeze(1).expand(-1, size, *seed.shape[1:]).flatten(0, 2)
    shape = graph[graph.input].shape
    pulled = pull_back(graph, graph.output, cotangent, spread).get(graph.input)
    if pulled is None:
        pulled = torch.zeros(len(cotangent), *shape, dtype=seed.dtype, device=seed.device)
    return pulled.reshape(batch, size, rows, *shape).transpose(1, 2)


def _norms(jacobian: Tensor, norm: float, whole: bool) -> Tensor:
    """Of ``(batch, rows, size, n)``."""
    if not whole:
        if norm == math.inf:
            return jacobian.abs().sum(-1)
        return safe_norm(jacobian) if norm == 2 else jacobian.abs().amax(-1)
    if norm == math.inf:
        return jacobian.abs().sum(-1).amax(1)
    if norm == 1:
        return jacobian.abs().sum(1).amax(-1)
    return torch.linalg.matrix_norm(jacobian.transpose(1, 2), 2)


def lower_bounds(
    graph: NetworkGraph,
    inputs: InputSet,
    seed: Tensor,
    norm: float,
    whole: bool,
    forward: Forward | None = None,
    samples: int = 32,
    steps: int = 20,
    starts: int = 2,
) -> tuple[Tensor, Tensor]:
    """Best constants found, ``(batch, rows)`` or ``(batch,)``, and the points ``(batch, rows or 1, *in)`` they were
    found at.

    The centre and random points first; then, from the best, ``steps`` of ascent on the norm of a smoothed Jacobian
    (each kink replaced by a sigmoid, since the true Jacobian of a piecewise linear network does not move).
    """
    generator = torch.Generator(device=seed.device).manual_seed(0)
    centre = inputs.project(inputs.centre.unsqueeze(1))
    x = torch.cat([centre, inputs.sample(max(samples - 1, 1), generator)], dim=1)
    rates = rates_at(graph, x, seed, norm, whole, inputs.moves)
    rates = rates.unsqueeze(1) if whole else rates
    best, at = rates.max(-1)
    points = _take(x, at)
    if steps and forward is not None and bool((inputs.high > inputs.low).any()):
        top = rates.topk(min(starts, rates.shape[-1]), dim=-1).indices
        for k in range(top.shape[-1]):
            reached, where = _climb(graph, inputs, _take(x, top[..., k]), seed, norm, whole, forward, steps)
            better = reached > best
            best = torch.where(better, reached, best)
            points = torch.where(better.reshape(*better.shape, *[1] * len(inputs.shape)), where, points)
    # rounding of the forward and backward pass may not lift a lower bound above the constant
    best = best * (1 - 1e-9)
    return (best.squeeze(1) if whole else best), points


def _take(x: Tensor, index: Tensor) -> Tensor:
    """``x (batch, count, *in)`` at ``index (batch, rows)``."""
    flat = x.flatten(2)
    taken = flat.gather(1, index.unsqueeze(2).expand(-1, -1, flat.shape[2]))
    return taken.reshape(*index.shape, *x.shape[2:])


def _climb(
    graph: NetworkGraph,
    inputs: InputSet,
    x: Tensor,
    seed: Tensor,
    norm: float,
    whole: bool,
    forward: Forward,
    steps: int,
):
    """Ascent from points ``(batch, rows or 1, *in)``; the best true rate on the way and where."""
    batch, count = x.shape[:2]
    width = (inputs.high - inputs.low).unsqueeze(1)
    best = torch.zeros(batch, count, dtype=seed.dtype, device=seed.device)
    points = x
    for step in range(steps):
        sharpness = 4.0 * (1 + step)
        gradient = _smooth_gradient(graph, x, seed, norm, whole, forward, sharpness)
        rate = 0.5 * (1 - step / steps) + 0.02
        if inputs.radius is None:
            x = x + rate * width * gradient.sign() / 2
        else:
            length = safe_norm(gradient.flatten(2)).clamp(min=1e-30).reshape(batch, count, *[1] * len(inputs.shape))
            x = x + 2 * rate * inputs.radius.reshape(-1, 1, *[1] * len(inputs.shape)) * gradient / length
        x = inputs.project(x)
        values = rates_at(graph, x, seed, norm, whole, inputs.moves)
        values = values if whole else values.diagonal(dim1=1, dim2=2)
        better = values > best
        best = torch.where(better, values, best)
        points = torch.where(better.reshape(batch, count, *[1] * len(inputs.shape)), x, points)
    return best, points


def _smooth_gradient(
    graph: NetworkGraph, x: Tensor, seed: Tensor, norm: float, whole: bool, forward: Forward, sharpness: float
) -> Tensor:
    """Gradient in x of the norm of the Jacobian with each kink smoothed, at points ``(batch, rows or 1, *in)``."""
    batch, count = x.shape[:2]
    with torch.enable_grad():
        point = x.flatten(0, 1).detach().requires_grad_()
        values = graph.values(point)
        slopes = {}
        for node in graph.activations:
            assert node.activation is not None
            lower, upper = (t.repeat_interleave(count, dim=0) for t in forward.intervals[node.parents[0]])
            scale = sharpness / (upper - lower).clamp(min=1e-12)
            slopes[node.name] = node.activation.smoothed_slope(values[node.parents[0]], scale)
        rows = seed if whole else seed.flatten(0, 1).unsqueeze(1)
        cotangent = rows.flatten(0, 1)
        spread = {n: t.repeat_interleave(rows.shape[1], dim=0) for n, t in slopes.items()}
        pulled = pull_back(graph, graph.output, cotangent, spread).get(graph.input)
        if pulled is None or not pulled.requires_grad:
            return torch.zeros_like(x)
        jacobian = pulled.reshape(batch * count, rows.shape[1], 1, -1)
        objective = _norms(jacobian, norm, whole).sum()
        (gradient,) = torch.autograd.grad(objective, point, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else torch.nan_to_num(gradient).reshape(x.shape)
