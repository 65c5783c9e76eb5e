"""What rounding in float64 can take from bounds by linear relaxations (CROWN), as auto_LiRPA computes them.

A backward pass multiplies coefficients by one layer's weights at a time. Coefficients v̂ that are off by δ at values of
at most S give a bound of v̂ h, which is one of v h less ``|δ| S``. Where the interval [l, u] that an activation's line
rests on is itself off by e, the line may be wrong by ``(|d| + L) e`` there, d its slope and L the function's steepest.
Slopes, and what is added to lines, are those of the intervals that CROWN itself used, which may be wider than what
interval arithmetic knows of the same values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.errors import DomainError
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.node import Interval, Node, node_interval
from lirpa_lip.norms.linear_map import ConvMap, ConvTransposeMap, LinearMap

#: A bound's own error through a line, and twice more where the line's interval is off by as much.
_THROUGH_A_LINE = 3


class LinearBoundErrors:
    """Error terms of nodes, one from those before it.

    With absolute weights in place of coefficients the errors of all layers add up going forward,

        e_k = |W_k| e_{k−1} + γ |W_k| S_{k−1} + γ |b_k|,        e_act = 3 D e + γ (S_act + D S) + σ,

    D the largest slope of the activation on the interval its line was taken on, σ how far PyTorch's own function is
    from the one that is bounded, γ of the number of terms of the longest sum and of the nodes whose parts are added.

    Args:
        box: ``(low, high)`` of the inputs.
        used: the intervals that CROWN took its lines on, by node. Of other nodes, and nodes it has not, interval
            arithmetic from these.

    Attributes:
        intervals: by node.
    """

    @torch.no_grad()
    def __init__(self, graph: NetworkGraph, box: Interval, used: Mapping[str, Interval]) -> None:
        self.graph = graph.to(torch.float64)
        low, high = (t.detach().double() for t in box)
        self.nodes = len(list(self.graph))
        self.intervals: dict[str, Interval] = {graph.input: (low, high)}
        self.of_input = sum_gamma(low[0].numel() + self.nodes) * torch.maximum(low.abs(), high.abs())
        for node in self.graph:
            if node.name in used:
                self.intervals[node.name] = tuple(t.detach() for t in used[node.name])  # type: ignore[assignment]
            elif not node.is_input:
                self.intervals[node.name] = self._enclosed(node)

    def _enclosed(self, node: Node) -> Interval:
        try:
            return node_interval(node, self.intervals)
        except DomainError:  # CROWN has its own way there, of which nothing is known
            like = self.intervals[self.graph.input][0]
            everything = like.new_full((len(like), *node.shape), torch.inf)
            return -everything, everything

    @torch.no_grad()
    def step(self, node: Node, errors: Mapping[str, Tensor]) -> Tensor:
        """What a bound of a node's values may be off by, ``(batch, *shape)``, from that of its parents'."""
        interval, sums = self.intervals[node.name], sum_gamma(node.shape.numel() + self.nodes)
        if node.activation is not None:
            parent = node.parents[0]
            moved = self._through(node, errors[parent], sums) + node.activation.value_slack
        else:
            moved = sums * (0 if node.bias is None else node.bias.abs())
            for map_, parent in zip(node.maps or (), node.parents, strict=True):
                size = largest(self.intervals[parent]) + errors[parent]
                terms = sum_gamma(_terms(map_) + self.nodes)
                moved = moved + map_.abs().forward(errors[parent] + terms * size)
        return torch.nan_to_num(moved, nan=torch.inf).expand_as(interval[0])

    def _through(self, node: Node, error: Tensor, sums: float) -> Tensor:
        assert node.activation is not None
        low, high = self.intervals[node.parents[0]]
        try:  # values that may lie beside the interval included
            slope = node.activation.slope_range(low - error, high + error, closed=True).magnitude.clamp(min=1)
        except DomainError:
            return torch.full_like(low, torch.inf)
        size = largest((low, high)) + error
        return _THROUGH_A_LINE * slope * error + sums * (largest(self.intervals[node.name]) + slope * size)


@torch.no_grad()
def linear_bound_rounding(
    graph: NetworkGraph, box: Interval, used: Mapping[str, Interval] | None = None
) -> dict[str, Tensor]:
    """How far rounding in float64 can move a bound by linear relaxations of each node's neurons, ``(batch, *shape)``.

    Args:
        box, used: see `LinearBoundErrors`. Without ``used`` intervals are those of interval arithmetic.
    """
    terms = LinearBoundErrors(graph, box, used or {})
    errors = {graph.input: terms.of_input}
    for node in terms.graph:
        if not node.is_input:
            errors[node.name] = terms.step(node, errors)
    return errors


def largest(interval: Interval) -> Tensor:
    """Largest absolute value, enough more than that for the rounding of interval arithmetic itself."""
    return torch.maximum(interval[0].abs(), interval[1].abs()) * (1 + 1e-6)


def sum_gamma(terms: int) -> float:
    """Relative error of a sum of products, in any order, with a margin for the few operations around it."""
    return 4 * (terms + 16) * torch.finfo(torch.float64).eps


def _terms(map_: LinearMap) -> int:
    """Length of the longest sum in an application of a map or of its adjoint."""
    weights = [t for t in map_.tensors() if t.ndim > 2] if isinstance(map_, (ConvMap, ConvTransposeMap)) else []
    kernel = sum(max(w.shape[:2]) * w[0, 0].numel() for w in weights)
    return kernel or map_.in_numel + map_.out_numel
