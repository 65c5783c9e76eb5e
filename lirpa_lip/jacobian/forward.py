"""Pre-activation bounds over a closed input set, with splits: interval arithmetic, then linear bound propagation.

The linear bounds are CROWN's (Zhang et al., NeurIPS 2018) over the graph's two kinds of node, on dense rows that are
taken chunk by chunk. They run in float64 and are widened by a bound of their rounding, so that an interval which comes
out empty proves that the domain is empty. What a row v has rounded as it passed a node is off by ``|v| · slack`` of
that node at most, with the row as it was pulled back: nothing is multiplied up along paths, however deep a network is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.activations.enclosing_lines import Lines
from lirpa_lip.errors import DomainError, NonFiniteError
from lirpa_lip.network.graph import NetworkGraph, Node
from lirpa_lip.network.node import node_interval
from lirpa_lip.network.rounding import RowErrors, affine_slack, many_children, node_gamma, widened, widest
from lirpa_lip.regions.region import Region

Interval = tuple[Tensor, Tensor]
#: Lines around every activation, and the slack of every node.
Planes = tuple[Mapping[str, Lines], Mapping[str, Tensor]]
#: Elements of one batch of rows (rows × widest node); a few such tensors live at a time.
ROW_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Forward:
    """What is known of the values over a domain.

    Attributes:
        intervals: bounds of every pre-activation node, ``(batch, *shape)``.
        slopes: Clarke slopes of every activation.
        lines: lines around every activation.
        after, before: split points by pre-activation node (only where there are splits).
        empty: samples whose domain certainly holds no point, ``(batch,)``.
        slack: what rounding may add to a row v at each node it passes is ``|v| · slack``, ``(batch or 1, *shape)``.
    """

    intervals: dict[str, Interval]
    slopes: dict[str, SlopeRange]
    lines: dict[str, Lines]
    splits: Mapping[str, Interval]
    empty: Tensor
    slack: Mapping[str, Tensor]

    def split(self, name: str) -> Interval:
        """Split points of a pre-activation node, infinite where there are none."""
        return self.splits.get(name) or unsplit(self.intervals[name][0])


def unsplit(like: Tensor) -> Interval:
    """``(−inf, inf)`` everywhere, contiguous whatever the memory layout of ``like``, so that it can be written by
    flat index."""
    options = {"dtype": like.dtype, "device": like.device}
    return torch.full(like.shape, -torch.inf, **options), torch.full(like.shape, torch.inf, **options)


@torch.no_grad()
def forward_bounds(
    graph: NetworkGraph,
    inputs: Region,
    splits: Mapping[str, Interval] | None = None,
    prior_intervals: Mapping[str, Interval] | None = None,
    crown: bool = True,
) -> Forward:
    """Bounds, slopes and lines of all pre-activations, in topological order.

    Args:
        splits: per pre-activation node, the half lines (or intervals) its neurons are restricted to.
        prior_intervals: valid bounds from elsewhere (a parent domain, auto_LiRPA), intersected with those found here.
        crown: tighten neurons whose slope is open by linear bound propagation.

    Raises:
        NonFiniteError: a bound is NaN.
    """
    splits, prior_intervals = splits or {}, prior_intervals or {}
    wanted = {node.parents[0] for node in graph.activations}
    intervals: dict[str, Interval] = {graph.input: inputs.interval()}
    errors: dict[str, Tensor] = {}
    slopes: dict[str, SlopeRange] = {}
    found: dict[str, Lines] = {}
    empty = inputs.empty
    for node in graph:
        if node.is_input:
            continue
        if node.activation is not None:
            lower, upper = intervals[node.parents[0]]
            after, before = splits.get(node.parents[0]) or unsplit(lower)
            reason = node.activation.outside(lower, upper)
            if reason:
                raise DomainError(node.name, node.operator, reason)
            slopes[node.name] = node.activation.clarke_range(lower, upper, after, before)
            lines = found[node.name] = node.activation.lines(lower, upper, slopes[node.name])
        slack = affine_slack(node, intervals)
        interval = node_interval(node, intervals, slack)
        interval = widened(node, interval) if slack is None else interval
        errors[node.name] = _lines_slack(graph, lines, (lower, upper)) if slack is None else _affine(graph, node, slack)
        interval = _cut(interval, prior_intervals.get(node.name), splits.get(node.name))
        if node.name in wanted:
            # of a box the intervals of a first layer are exact
            if crown and (inputs.radius is not None or graph.sources(node.name) != [graph.input]):
                interval = _tighten(graph, node, interval, inputs, (found, errors), splits.get(node.name))
            if any(bool(torch.isnan(t).any()) for t in interval):
                raise NonFiniteError(f"a pre-activation bound of {node.operator} at node {node.name!r}")
            empty = empty | (interval[0] > interval[1]).flatten(1).any(1)
        # an empty domain goes on with some valid numbers; its results are not used
        intervals[node.name] = torch.minimum(*interval), torch.maximum(*interval)
    kept = {name: intervals[name] for name in wanted}
    return Forward(kept, slopes, found, dict(splits), empty, errors)


def _affine(graph: NetworkGraph, node: Node, slack: Tensor) -> Tensor:
    """Of an affine node: sums with its weights, of its bias, and over the nodes that read its parents."""
    found = slack * many_children(graph)
    return found if node.bias is None else found + node_gamma(graph) * node.bias.abs()


def _lines_slack(graph: NetworkGraph, lines: Lines, interval: Interval) -> Tensor:
    """Of an activation: products with the slopes of its lines, and the sum of their offsets."""
    reach = torch.maximum(interval[0].abs(), interval[1].abs())
    slope = torch.maximum(lines.low_slope.abs(), lines.high_slope.abs())
    return node_gamma(graph) * (slope * reach + torch.maximum(lines.low_offset.abs(), lines.high_offset.abs()))


def _cut(interval: Interval, *others: Interval | None) -> Interval:
    lower, upper = interval
    for other in others:
        if other is not None:
            lower, upper = torch.maximum(lower, other[0]), torch.minimum(upper, other[1])
    return lower, upper


def _tighten(
    graph: NetworkGraph,
    node: Node,
    interval: Interval,
    inputs: Region,
    planes: Planes,
    split: Interval | None,
) -> Interval:
    """Linear bounds of the neurons whose slope is open under some activation that reads them."""
    lower, upper = torch.minimum(*interval), torch.maximum(*interval)
    after, before = split if split is not None else unsplit(lower)
    open_ = torch.zeros_like(lower, dtype=torch.bool)
    for reader in graph.activations:
        if reader.parents[0] == node.name:
            assert reader.activation is not None
            slopes = reader.activation.clarke_range(lower, upper, after, before)
            open_ |= slopes.low < slopes.high
    index, valid = most_open(open_.flatten(1))
    if index.shape[1] == 0:
        return interval
    rows_low, rows_high = [], []
    for part in index.split(chunk_size(graph, 2 * len(inputs)), dim=1):
        rows = torch.zeros(*part.shape, node.shape.numel(), dtype=graph.dtype, device=graph.device)
        rows.scatter_(2, part.unsqueeze(2), 1.0)
        both = torch.cat([rows, -rows], 1).reshape(len(inputs), -1, *node.shape)
        a, b = pull_back_planes(graph, {node.name: both}, planes)
        high, low = (inputs.maximum(a) + b).chunk(2, dim=1)
        rows_low.append(-low)
        rows_high.append(high)
    low, high = torch.cat(rows_low, 1), torch.cat(rows_high, 1)
    low, high = torch.where(valid, low, -torch.inf), torch.where(valid, high, torch.inf)
    return _scatter_cut(interval, index, low, high)


def _scatter_cut(interval: Interval, index: Tensor, low: Tensor, high: Tensor) -> Interval:
    lower, upper = (t.flatten(1) for t in interval)
    lower = lower.scatter_reduce(1, index, low, "amax", include_self=True)
    upper = upper.scatter_reduce(1, index, high, "amin", include_self=True)
    return lower.reshape(interval[0].shape), upper.reshape(interval[1].shape)


def most_open(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the set entries of each row of a mask ``(…, n)``, padded to the longest, and which are no padding."""
    most = int(mask.sum(-1).max()) if mask.numel() else 0
    picked = mask.to(torch.int8).topk(most, dim=-1)
    return picked.indices, picked.values > 0


def chunk_size(graph: NetworkGraph, rows: int) -> int:
    """How many vectors for each of ``rows`` fit into one chunk."""
    return max(1, ROW_ELEMENTS // (widest(graph) * max(1, rows)))


def pull_back_planes(graph: NetworkGraph, rows: Mapping[str, Tensor], planes: Planes) -> tuple[Tensor, Tensor]:
    """``a, b`` with ``Σ_t rows_t · z_t(x) ≤ a · x + b`` over the region, for rows ``(batch, k, *shape)`` at nodes t.

    Returns ``(batch, k, *in)`` and ``(batch, k)``; rounding on the way is in ``b``, that of ``a · x`` is not.
    """
    found, slack = planes
    like = next(iter(rows.values()))
    batch, count = like.shape[:2]
    pending = {target: value.flatten(0, 1) for target, value in rows.items()}
    errors = RowErrors(slack, batch)
    offset = torch.zeros(batch, count, dtype=like.dtype, device=like.device)
    reached = {name for target in rows for name in graph.ancestors(target)}
    for name in reversed([node.name for node in graph if node.name in reached]):
        if name not in pending or name == graph.input:
            continue
        node, value = graph[name], pending.pop(name)
        errors.visit(name, value)
        if node.maps is not None:
            if node.bias is not None:
                offset = offset + (value * node.bias).reshape(batch, count, -1).sum(-1)
            parts = [m.adjoint(value) for m in node.maps]
        else:
            value = value.reshape(batch, count, *node.shape)
            above, below = value.clamp(min=0), value.clamp(max=0)
            line = found[name]
            constant = above * line.high_offset.unsqueeze(1) + below * line.low_offset.unsqueeze(1)
            offset = offset + constant.flatten(2).sum(-1)
            parts = [(above * line.high_slope.unsqueeze(1) + below * line.low_slope.unsqueeze(1)).flatten(0, 1)]
        for parent, part in zip(node.parents, parts):
            pending[parent] = pending[parent] + part if parent in pending else part
    shape = graph[graph.input].shape
    a = pending.get(graph.input)
    a = torch.zeros(batch, count, *shape, dtype=like.dtype, device=like.device) if a is None else a
    # slack may be infinite where a row is 0
    eps = torch.finfo(offset.dtype).eps
    rounded = torch.nan_to_num(torch.as_tensor(errors.total, dtype=offset.dtype), nan=torch.inf)
    return a.reshape(batch, count, *shape), offset + rounded * (1 + node_gamma(graph)) + 8 * eps * offset.abs()
