"""How far a forward pass in floating point can be from the network in real arithmetic: a running error bound.

With unit roundoff u, a sum of n products that is formed in any order, with or without fused operations, is off by at
most ``((1 + u)ⁿ − 1) Σ|a_i||z_i|`` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1 and §4.2), so
that behind an affine node z = Σ_p A_p z_p + b, whose inputs are themselves off by e_p,

    e  ≤  Σ_p |A_p| e_p  +  ((1 + u)^k − 1) (Σ_p |A_p| (|z_p| + e_p) + |b|)  +  k · (smallest normal number),

with k the number of summands plus a few roundings by which coefficients may have come about. Behind an activation,
``e ≤ S e_p`` plus the function's own error, S its largest slope within e_p of the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.node import Interval, Node
from lirpa_lip.norms.linear_map import ComposedMap, ConvMap, ConvTransposeMap, LinearMap, ReshapeMap, SumMap

#: Roundings that a coefficient may have behind it (batch norm's scale), beside those of the sum it enters.
_COEFFICIENT = 8
#: Unit roundoffs that a library's exp, tanh, erf or a formula of a few operations may be off by.
_FUNCTION = 16

Range: TypeAlias = Tensor | Interval


def forward_error(
    graph: NetworkGraph, ranges: Mapping[str, Range], dtype: torch.dtype, rounded_input: bool = False
) -> dict[str, Tensor]:
    """Bounds of ``|fl(z) − z|`` at every node, for any evaluation of the network in ``dtype``.

    Products of half precision are taken to be summed in float32, as PyTorch's kernels do, and then rounded.

    Args:
        graph: the network, in any precision; the errors come in its own.
        ranges: what each node's value z can be: ``(lower, upper)``, each ``(batch, *shape)``, or one tensor with upper
            bounds of ``|z|``. At a point both ends are the value.
        dtype: float32, float64, bfloat16 or float16.
        rounded_input: the input is rounded to ``dtype`` first (otherwise it is taken to be representable).

    Returns:
        ``{name: (batch, *shape)}``, infinite where values may overflow ``dtype``.
    """
    return _errors(graph, ranges, [dtype], rounded_input)


def difference(graph: NetworkGraph, ranges: Mapping[str, Range], *dtypes: torch.dtype) -> dict[str, Tensor]:
    """Bounds of how far two evaluations, in the two precisions, can lie from each other at every node."""
    return _errors(graph, ranges, list(dtypes), False)


def _errors(graph: NetworkGraph, ranges: Mapping[str, Range], dtypes: list[torch.dtype], rounded_input: bool) -> dict:
    """Both kinds at once: the errors of several evaluations add up."""
    largest = min(torch.finfo(d).max for d in dtypes)
    errors: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in graph:
            low, high = _ends(ranges[node.name])
            size = torch.maximum(low.abs(), high.abs())
            if node.is_input:
                error = size * (sum(_Precision(d).unit for d in dtypes) if rounded_input else 0.0)
            else:
                error = node_error(node, ranges, errors, *dtypes)
            bad = torch.isnan(error) | ~(size + error <= largest)
            errors[node.name] = torch.where(bad, torch.inf, error)
    return errors


def first_order(graph: NetworkGraph, x: Tensor, rows: Tensor, *dtypes: torch.dtype) -> Tensor:
    """How far two evaluations of ``c · f`` at a point can lie apart, to first order in the roundoffs.

    ``Σ_k |∂f/∂z_k| · (error made at node k)``: errors are carried on by the network's own derivatives, with their
    signs, and not by |A| layer after layer, which in a deep network would leave nothing to be found.

    Args:
        graph: the network; the computation is in its precision.
        x: points ``(n, *shape)``.
        rows: ``(n, outputs)``, the c of each point.
        dtypes: of the two evaluations.

    Returns:
        ``(n,)``.
    """
    with torch.enable_grad():
        values = graph.values(x.detach().to(graph.dtype).requires_grad_())
        output = (values[graph.output].flatten(1) * rows.to(graph.dtype)).sum()
        moved = torch.autograd.grad(output, list(values.values()), allow_unused=True)
    ranges: dict[str, Range] = {name: (v.detach(), v.detach()) for name, v in values.items()}
    exact = {name: torch.zeros_like(v) for name, v in values.items()}
    total = torch.zeros(len(x), dtype=graph.dtype, device=x.device)
    for node, slope in zip(graph, moved, strict=True):
        if slope is not None and not node.is_input:
            made = node_error(node, ranges, exact, *dtypes)
            total = total + torch.where(slope == 0, 0.0, slope.abs() * made).flatten(1).sum(1)
    return total


def node_error(node: Node, ranges: Mapping[str, Range], errors: Mapping[str, Tensor], *dtypes: torch.dtype) -> Tensor:
    """Error at one node from those of the nodes before it, for the sum of evaluations in ``dtypes``."""
    units = [_Precision(d) for d in dtypes]
    unit = sum(p.unit for p in units)
    if node.activation is not None:
        parent = node.parents[0]
        error = _activation_error(node.activation, _ends(ranges[parent]), errors[parent], unit)
    else:
        error = _affine_error(node, ranges, errors, units)
    if node.roundings:
        low, high = _ends(ranges[node.name])
        error = error + node.roundings * unit * (1 + torch.maximum(low.abs(), high.abs()) + error)
    return error


class _Precision:
    """What rounding in a type costs: ``unit``, relative, of one operation; ``tiny``, absolute, where it underflows."""

    def __init__(self, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        self.unit, self.tiny = info.eps / 2, info.tiny
        self.sum_unit = min(self.unit, torch.finfo(torch.float32).eps / 2)

    def growth(self, terms: int) -> float:
        """Relative error of a sum of products: ``(1 + u)ⁿ − 1``, rounded up."""
        steps = terms * math.log1p(self.sum_unit) + _COEFFICIENT * math.log1p(self.unit)
        return math.expm1(steps) * (1 + 1e-6) if steps < 700 else math.inf


def _affine_error(
    node: Node, ranges: Mapping[str, Range], errors: Mapping[str, Tensor], units: Sequence[_Precision]
) -> Tensor:
    assert node.maps is not None
    summands = sum(terms(m) for m in node.maps) + len(node.maps) - 1 + (node.bias is not None)
    growth, tiny = (sum(p.growth(summands) for p in units), sum(p.tiny for p in units)) if summands else (0.0, 0.0)
    total: Tensor | float = 0.0
    for map_, parent in zip(node.maps, node.parents, strict=True):
        low, high = _ends(ranges[parent])
        size = torch.maximum(low.abs(), high.abs()).to(map_.dtype)
        error = errors[parent].to(map_.dtype)
        size = _as_fast_convolutions_see_it(map_, size + error)
        # what is infinite stays so, through 0 · inf too
        total = total + map_.abs().forward(error + growth * size)
    if node.bias is not None:
        bias = node.bias.abs() if node.bias_size is None else node.bias_size
        total = total + growth * bias
    # the bound itself was computed, mostly from positive numbers
    return (total + tiny * (summands + _COEFFICIENT)) * (1 + 1e-5)


def _as_fast_convolutions_see_it(map_: LinearMap, size: Tensor) -> Tensor:
    """On a GPU a convolution may go by way of Winograd's or Fourier's transform, whose errors spread over the image."""
    if not isinstance(map_, (ConvMap, ConvTransposeMap)) or size.device.type == "cpu":
        return size
    axes = tuple(range(2, size.ndim))
    return 4 * size.amax(axes, keepdim=True).expand_as(size)


def _activation_error(activation: Activation, interval: Interval, error: Tensor, unit: float) -> Tensor:
    low, high = interval[0] - error, interval[1] + error
    if activation.is_root:  # what the network takes a root of is not negative
        low, high = low.clamp(min=0), high.clamp(min=0)
    slope = activation.slope_range(low, high).magnitude
    ends = activation.interval(low, high)
    value = torch.maximum(ends[0].abs(), ends[1].abs())
    if activation.is_root:
        own = value
        slope = torch.minimum(slope, activation.value(error) / error)
    elif activation.piecewise_linear:
        own = value + slope * torch.maximum(low.abs(), high.abs())
    else:
        size = torch.maximum(low.abs(), high.abs()).clamp(max=1e4)  # where every known one is flat, linear or infinite
        own = value + (1 + size) * slope.clamp(min=1)
    moved = torch.where(error == 0, 0.0, slope * error)
    return (moved + _FUNCTION * unit * own + activation.value_slack) * (1 + 1e-5)


def _ends(values: Range) -> Interval:
    if isinstance(values, Tensor):
        return -values.abs(), values.abs()
    return values


def terms(map_: LinearMap) -> int:
    """How many products an entry of the map's result is summed from, at most; 0 where values are only moved."""
    if isinstance(map_, ReshapeMap):
        return 0
    if isinstance(map_, ComposedMap):
        return sum(terms(m) for m in map_.maps)
    if isinstance(map_, SumMap):
        return sum(terms(m) for m in map_.maps) + len(map_.maps) - 1
    if isinstance(map_, ConvMap):
        return map_.weight[0].numel()
    if isinstance(map_, ConvTransposeMap):
        return map_.in_shape[0] // map_.conv.groups * map_.conv.weight[0, 0].numel()
    if map_.most_terms:
        return map_.most_terms
    if map_.row_monomial:
        return 1
    return map_.in_numel
