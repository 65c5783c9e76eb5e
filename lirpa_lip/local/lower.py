"""Lower bounds of Lipschitz constants: norms of the Jacobian at points of a region, and differences between points."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.local.layers import Layers
from lirpa_lip.local.linearised import pull_back
from lirpa_lip.local.rate_errors import RateErrors, rate_errors
from lirpa_lip.network.forward_error import forward_error
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.node import Interval
from lirpa_lip.network.rounding import RowErrors, positive_slack, widest
from lirpa_lip.regions.region import Region, safe_norm


@torch.no_grad()
def sampled_rates(
    graph: NetworkGraph, region: Region, c: Tensor | None, layers: Layers, samples: int = 8, seed: int | None = None
) -> Tensor:
    """Largest Jacobian norm found: row norms ``(batch, specs)``, or spectral norms ``(batch,)`` for ``c=None``.

    The points are the centre and random ones of the region. Where a network is differentiable the norm of its Jacobian,
    in the directions in which the region extends, is a limit of rates of change and never exceeds the constant. What
    is not known of the Jacobian is taken off: slopes of neurons whose sign rounding leaves open, and rounding itself.

    Args:
        layers: propagated over the region for all pairs of points, which bound how fast values can change.
        seed: of the random points; ``None`` takes them from torch's global generator.
    """
    generator = None if seed is None else torch.Generator(graph.device).manual_seed(seed)
    whole = c is None
    if whole:
        outputs = graph[graph.output].shape.numel()
        c = torch.eye(outputs, dtype=graph.dtype, device=graph.device).expand(len(region.eps), -1, -1)
    errors = rate_errors(graph, layers)
    low, high = region.interval()
    moves = ((low < high) | (region.eps.reshape(-1, *[1] * (low.ndim - 1)) == 0)).flatten(1).unsqueeze(1)
    best: Tensor | None = None
    for index in range(samples):
        x = region.centre if index == 0 else region.sample(generator)
        rows, unknown = _jacobian(graph, x, c, layers, errors)
        certain = torch.isfinite(rows).flatten(1).all(1)  # else a slope is known nowhere, and neither is the norm
        rows = torch.where(certain.reshape(-1, 1, 1), rows * moves, 0.0)
        room = 1 - positive_slack(4 * (rows.shape[1] + rows.shape[2]), graph.dtype)
        if whole:
            value = torch.linalg.matrix_norm(rows, 2) * room - safe_norm(unknown)
        else:
            value = safe_norm(rows) * room - unknown
        value = value.nan_to_num(nan=0.0).clamp(min=0)
        if index == 0:
            # kinks at the centre leave nothing certain of its Jacobian; a difference across them does not mind
            value = torch.maximum(value, _across(graph, region, c, rows, whole))
        best = value if best is None else torch.maximum(best, value)
    assert best is not None
    return best


def _jacobian(graph: NetworkGraph, x: Tensor, c: Tensor, layers: Layers, known: RateErrors) -> tuple[Tensor, Tensor]:
    """Gradients of ``C f`` at ``x``, ``(batch, specs, n)``, and in norm at most how far off, ``(batch, specs)``."""
    batch, specs = c.shape[:2]
    values = graph.values(x)
    off = forward_error(graph, _points(values), graph.dtype)
    slack, centres = dict(known.slack), {}
    for node in graph.activations:
        assert node.activation is not None
        parent = node.parents[0]
        slopes = node.activation.slope_range(values[parent] - off[parent], values[parent] + off[parent], closed=True)
        slack[node.name] = slopes.radius * known.speed[parent]
        centres[node.name] = slopes.centre.repeat_interleave(specs, dim=0)
    errors = RowErrors(slack, batch)
    rows = c.reshape(batch * specs, *graph[graph.output].shape)
    found = pull_back(graph, graph.output, rows, centres, errors.visit)[graph.input].reshape(batch, specs, -1)
    unknown = errors.total * (1 + positive_slack(widest(graph), graph.dtype)) + known.underflow
    return found, torch.as_tensor(unknown).expand(batch, specs)


def _points(values: Mapping[str, Tensor]) -> dict[str, Interval]:
    return {name: (value, value) for name, value in values.items()}


def _across(graph: NetworkGraph, region: Region, c: Tensor, rows: Tensor, whole: bool) -> Tensor:
    """``|c · (f(a) − f(b))| / ‖a − b‖`` for points either side of the centre along each row, or along the direction in
    which all rows together are longest (``‖f(a) − f(b)‖``); less what rounding may have added."""
    batch, shape = len(c), region.centre.shape[1:]
    if whole:
        rows = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1]
    length = safe_norm(rows).unsqueeze(2)
    reach = region.eps.reshape(-1, 1, 1) * (1 - 4 * rows.shape[2] * torch.finfo(rows.dtype).eps)
    step = torch.where(length > 0, rows / torch.where(length > 0, length, 1.0), 0.0) * reach
    step = step.reshape(batch, -1, *shape)
    low, high = (end.unsqueeze(1) for end in region.interval())
    ends = [torch.minimum(torch.maximum(region.centre.unsqueeze(1) + sign * step, low), high) for sign in (1, -1)]
    points = torch.cat(ends, dim=1).flatten(0, 1)
    values = graph.values(points)
    off = forward_error(graph, _points(values), graph.dtype)[graph.output].reshape(batch, 2, -1, c.shape[2])
    found = values[graph.output].reshape(batch, 2, -1, c.shape[2])
    change, unknown = found[:, 0] - found[:, 1], off.sum(1) + torch.finfo(rows.dtype).eps * found.abs().sum(1)
    distance = safe_norm((ends[0] - ends[1]).flatten(2)) * (1 + positive_slack(2 * rows.shape[2], rows.dtype))
    if whole:
        certain = safe_norm(change) - safe_norm(unknown)
    else:
        slack = 1 + positive_slack(2 * c.shape[2], rows.dtype)
        certain = (c * change).sum(2).abs() - (c.abs() * (unknown + (slack - 1) * change.abs())).sum(2) * slack
    certain = certain * (1 - positive_slack(4 * c.shape[2], rows.dtype))
    rate = torch.where(distance > 0, certain / torch.where(distance > 0, distance, 1.0), 0.0)
    rate = rate.nan_to_num(nan=0.0, posinf=0.0).clamp(min=0)
    return rate.squeeze(1) if whole else rate
