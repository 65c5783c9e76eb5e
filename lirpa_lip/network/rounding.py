"""What rounding can add to a number that was computed: γ-type error terms of maps, nodes and whole graphs.

A sum of n products, in any order, differs from its exact value by at most ``γ_n Σ |terms|``,
``γ_n = n u / (1 − n u)``, u half the distance from 1 to the next number (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, §3). Underflow adds at most the least normal number for each term.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.node import Interval, Node
from lirpa_lip.norms.linear_map import (
    ConvMap,
    ConvTransposeMap,
    DenseMap,
    DiagonalMap,
    FunctionMap,
    LinearMap,
    ReshapeMap,
)
from lirpa_lip.norms.maps.compose import _Combination

#: Rounding units that elementwise functions and the few operations around each sum may take.
_FEW = 16


def unit(dtype: torch.dtype) -> float:
    """Unit roundoff u, half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma_of(count: int, dtype: torch.dtype) -> float:
    """``γ_n = n u / (1 − n u)``, infinite where it means nothing."""
    share = count * unit(dtype)
    return share / (1 - share) if share < 0.5 else float("inf")


def summands(map_: LinearMap) -> int:
    """Numbers that are summed for an entry of ``A x`` or of ``Aᵀ y``, at most; of compositions, one after another."""
    if isinstance(map_, DenseMap):
        return max(map_.weight.shape)
    if isinstance(map_, (ConvMap, ConvTransposeMap)):
        conv = map_.conv if isinstance(map_, ConvTransposeMap) else map_
        taps = conv.weight[0, 0].numel()
        return taps * max(conv.weight.shape[1], conv.weight.shape[0] // conv.groups)
    if map_.most_terms:
        return 2 * map_.most_terms  # its entries are rounded, too
    if isinstance(map_, ReshapeMap):
        return 0
    if isinstance(map_, DiagonalMap) or (isinstance(map_, FunctionMap) and map_.row_monomial and map_.column_monomial):
        return 1
    if isinstance(map_, _Combination):
        return sum(summands(m) for m in map_.maps) + len(map_.maps)
    return map_.in_numel + map_.out_numel


def map_gamma(map_: LinearMap, extra: int = 8) -> float:
    """γ of one application of a map, or of its adjoint, with some operations more."""
    return gamma_of(summands(map_) + extra, map_.dtype)


def positive_slack(count: int, dtype: torch.dtype) -> float:
    """Relative error of a sum of ``count`` non-negative numbers, each the result of a few operations."""
    return gamma_of(count + 2 * _FEW, dtype)


def absolute(graph: NetworkGraph, map_: LinearMap) -> LinearMap:
    """``|A|``, remembered."""
    key = ("abs", id(map_))
    if key not in graph._cache:
        # the map is kept as well: its address is the key
        graph._cache[key] = (map_.detach().abs(), map_)
    return graph._cache[key][0]


class NodeErrors:
    """Error terms of every node over one region, in the order of propagation.

    The float numbers z̃ of a pass at the centre are the points that bounds expand around. At every affine node

        |W h̃ + b − z̃|  +  |rounding of a row v W, as it meets h(x) − h̃|  <=  |v| · slack,

    so that a row's error is a sum over nodes of ``|v| · slack``, with the rows v as they were pulled back: nothing is
    multiplied up along paths. What the functions of the parents have rounded is in it as well.

    Attributes:
        slack: of each affine node, ``(batch, *shape)``; also what its interval is widened by. Of an activation only
            where no affine node reads it.
        chain: the same with what comes from the affine nodes before it, back to the activations.
        rounded: what the function of each activation may have rounded.
    """

    def __init__(self, graph: NetworkGraph, values: Mapping[str, Tensor]) -> None:
        self.graph, self.values = graph, values
        self.slack: dict[str, Tensor] = {}
        self.chain: dict[str, Tensor] = {}
        self.rounded: dict[str, Tensor] = {}
        self.tiny = torch.finfo(graph.dtype).tiny
        self._read_by_activations = {node.parents[0] for node in graph.activations}

    @torch.no_grad()
    def affine(self, node: Node, intervals: Mapping[str, Interval]) -> Tensor:
        """Notes and returns the slack of an affine node, from the intervals of its parents."""
        assert node.maps is not None
        total = chain = self.tiny * (sum(map(summands, node.maps)) + 4)
        for map_, parent in zip(node.maps, node.parents, strict=True):
            source = 2 * map_gamma(map_, 12 + len(node.maps)) * self._size(parent, intervals[parent])
            if parent in self.rounded:
                source = source + self.rounded[parent]
            before = self.chain.get(parent)
            both = source if before is None else torch.cat([source, before])
            passed = absolute(self.graph, map_).forward(both)
            total = total + passed[: len(source)]
            chain = chain + (0 if before is None else passed[len(source) :])
        if node.bias is not None:
            total = total + _FEW * unit(self.graph.dtype) * node.bias.detach().abs()
        self.slack[node.name] = total
        self.chain[node.name] = total + chain
        return total

    @torch.no_grad()
    def activation(self, node: Node, steepest: Tensor, before: Interval, after: Interval) -> Tensor:
        """Notes and returns what an activation's values may be off by, on the whole interval.

        Args:
            steepest: largest slope on the interval.
            before, after: bounds of the pre-activation and of the value.
        """
        assert node.activation is not None
        size = torch.maximum(after[0].abs(), after[1].abs())
        reach = self._size(node.parents[0], before)
        steepest = steepest if node.activation.piecewise_linear else steepest.clamp(min=1)
        if node.activation.is_root:  # the rounding of its input is in that of its value, also where the slope is ∞
            steepest = torch.where(torch.isfinite(steepest), steepest, 0.0)
        rounded = _FEW * unit(self.graph.dtype) * (size + steepest * reach) + node.activation.value_slack
        self.rounded[node.name] = rounded
        if node.name == self.graph.output or node.name in self._read_by_activations:
            self.slack[node.name] = rounded
        return rounded

    def of_anchor(self, name: str) -> Tensor:
        """What the value of a pre-activation may be off by, beside what comes from its sources."""
        found = self.chain.get(name, self.rounded.get(name))
        return torch.zeros_like(self.values[name]) if found is None else found  # the input itself is exact

    def _size(self, name: str, interval: Interval) -> Tensor:
        """``|z̃|`` and how far ``z`` may be from it."""
        value, (low, high) = self.values[name], interval
        return value.abs() + torch.maximum(high - value, value - low).clamp(min=0)


class RowErrors:
    """Sums ``|v_k| · slack_k`` over the nodes that rows v pass; `visit` is for `pull_back`.

    Args:
        slack: ``(samples or 1, *shape)`` by node.
        samples: of the rows, ``(samples · specs, *shape)``.
        size: ``‖slack_k‖₂``, ``(samples or 1, 1)`` by node, for ``‖v_k‖₂ ‖slack_k‖₂`` in place of the sums: larger,
            and fewer passes over the rows.
    """

    def __init__(self, slack: Mapping[str, Tensor], samples: int, size: Mapping[str, Tensor] | None = None) -> None:
        self.slack, self.samples, self.size = slack, samples, size
        self.total: Tensor | float = 0.0

    @torch.no_grad()
    def visit(self, name: str, rows: Tensor) -> None:
        slack = self.slack.get(name)
        if slack is None or rows.numel() == 0:  # a part of nothing, such as x[:, :-1] of one feature
            return
        if self.size is not None:
            # squares that underflow lose at most the least normal number each
            lost = (slack[0].numel() * torch.finfo(slack.dtype).tiny) ** 0.5
            length = torch.linalg.vector_norm(rows.detach().flatten(1), dim=1) + lost
            self.total = self.total + length.reshape(self.samples, -1) * self.size[name]
        else:
            length = rows.detach().abs().reshape(self.samples, -1, slack[0].numel())
            self.total = self.total + (length @ slack.flatten(1).unsqueeze(2)).squeeze(2)

    def added(self, bound: Tensor, graph: NetworkGraph) -> Tensor:
        """``bound``, a sum of non-negative parts ``(samples, specs)``, with its rounding and the rows'; as it was
        where there is no slack, of an estimate."""
        if not self.slack:
            return bound
        return (bound + self.total) * (1 + positive_slack(widest(graph), graph.dtype))


def widest(graph: NetworkGraph) -> int:
    """Entries of the largest node."""
    key = ("widest",)
    if key not in graph._cache:
        graph._cache[key] = max(node.shape.numel() for node in graph)
    return graph._cache[key]


def gamma(map_: LinearMap) -> float:
    """Relative rounding error of one application of a map, beside the sum of the absolute values that enter it.

    With room for sums over all entries of either side.
    """
    return 4 * (map_.in_numel + map_.out_numel + _FEW) * torch.finfo(map_.dtype).eps


def widened(node: Node, interval: Interval) -> Interval:
    """An activation's interval, widened by the rounding of its function."""
    lower, upper = interval
    slack = _FEW * torch.finfo(lower.dtype).eps * torch.maximum(lower.abs(), upper.abs())
    return lower - slack, upper + slack


def affine_slack(node: Node, intervals: Mapping[str, Interval]) -> Tensor | None:
    """What rounding may add to an affine node's interval; ``None`` of an activation."""
    if node.maps is None:
        return None
    slack: Tensor | float = 0.0
    for map_, parent in zip(node.maps, node.parents):
        low, high = intervals[parent]
        slack = slack + gamma(map_) * map_.abs().forward(torch.maximum(low.abs(), high.abs()))
    if node.bias is not None:
        slack = slack + _FEW * unit(node.bias.dtype) * 2 * node.bias.abs()
    assert isinstance(slack, Tensor)
    return slack


def node_gamma(graph: NetworkGraph) -> float:
    """Relative error of one sum over the entries of any node, with all nodes' sums added to it."""
    return 4 * (widest(graph) + len(graph.nodes) + _FEW) * torch.finfo(graph.dtype).eps


def many_children(graph: NetworkGraph) -> float:
    """By how much `gamma` must grow where a node may be read by as many others as there are."""
    return max(1.0, len(graph.nodes) / _FEW)


def absolute_sizes(graph: NetworkGraph, size: Tensor) -> dict[str, Tensor]:
    """``Σ over paths of |weights| |x|`` at every node, for inputs of absolute values up to ``size``."""
    sizes = {graph.input: size}
    for node in graph:
        if node.maps is not None:
            total = sum(absolute(graph, m).forward(sizes[p]) for m, p in zip(node.maps, node.parents))
            sizes[node.name] = total if node.bias is None else total + node.bias.abs()
        elif node.activation is not None:
            size = sizes[node.parents[0]]
            everywhere = node.activation.slope_range(-size, size, closed=True).magnitude
            at_zero = node.activation.value(torch.zeros_like(size)).abs()
            sizes[node.name] = at_zero + everywhere.clamp(min=1.0) * size * 3
    return sizes


def total_gamma(graph: NetworkGraph) -> float:
    """Relative rounding error of a chain of applications through the whole graph."""
    key = ("gamma",)
    if key not in graph._cache:
        graph._cache[key] = 4 * sum(gamma(m) for node in graph if node.maps is not None for m in node.maps)
    return graph._cache[key]
