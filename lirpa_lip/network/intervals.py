"""Bounds of pre-activations by interval arithmetic, and bounds read from auto_LiRPA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.errors import NonFiniteError
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.node import Interval, Node, intersect, node_interval
from lirpa_lip.norms.linear_map import ConvMap, ConvTransposeMap, LinearMap


def check_interval(node: Node, interval: Interval) -> None:
    """Raises `NonFiniteError` where a bound is NaN, or so large that arithmetic with it would make NaN."""
    if not all(bool(torch.isfinite(t).all()) for t in interval):
        where = f"a pre-activation bound of {node.operator} at node {node.name!r}"
        raise NonFiniteError(where, "the network's values overflow: scale its weights, or make eps smaller")


def lirpa_intervals(bounded: Any, graph: NetworkGraph, box: Interval) -> dict[str, Interval]:
    """Bounds that auto_LiRPA has left on its nodes after a CROWN pass in float64, for the affine nodes of ``graph``.

    The output is left out: there auto_LiRPA stores bounds of ``C f(x)``. ``box`` encloses the region of the pass; the
    bounds are widened by what rounding may have taken from them (`linear_bound_rounding`).
    """
    found = {}
    for node in graph:
        name = node.name
        traced = bounded._modules.get(name)
        if node.maps is None or name == graph.output or traced is None:
            continue
        lower, upper = getattr(traced, "lower", None), getattr(traced, "upper", None)
        if lower is None or upper is None or lower.shape[1:] != graph[name].shape:
            continue
        found[name] = lower.double(), upper.double()
    errors = linear_bound_rounding(graph, box, found)
    return {
        name: (
            _cast(lower - errors[name], graph.dtype, -torch.inf),
            _cast(upper + errors[name], graph.dtype, torch.inf),
        )
        for name, (lower, upper) in found.items()
    }


def _cast(bound: Tensor, dtype: torch.dtype, outwards: float) -> Tensor:
    if bound.dtype == dtype:
        return bound
    narrow = bound.to(dtype)
    return narrow + (torch.nextafter(narrow, torch.full_like(narrow, outwards)) - narrow).detach()


@torch.no_grad()
def linear_bound_rounding(
    graph: NetworkGraph, box: Interval, prior_intervals: Mapping[str, Interval] | None = None
) -> dict[str, Tensor]:
    """How far rounding in float64 can move a bound by linear relaxations (CROWN) of each node's neurons.

    A backward pass multiplies coefficients by one layer's weights at a time. An error δ in those it hands to a layer
    whose values are at most S moves the bound by at most |δ| S, and is at most γ |coefficients| |weights|. So with the
    absolute weights in place of the coefficients the errors of all layers add up going forward,

        e_k = |W_k| e_{k-1} + γ |W_k| S_{k-1} + γ |b_k|,        e_act = D e + γ (S_act + D S) + σ,

    D the largest slope of the activation's lines, σ how far PyTorch's own function is from the one that is bounded, γ
    of the number of terms of the longest sum. S comes from interval
    arithmetic over ``box``, intersected with ``prior_intervals``, bounds that are themselves right up to their own such
    errors.
    """
    wide = graph.to(torch.float64)
    low, high = (t.double() for t in box)
    intervals: dict[str, Interval] = {graph.input: (low, high)}
    errors = {graph.input: _gamma(low[0].numel()) * torch.maximum(low.abs(), high.abs())}
    for node in wide:
        if node.is_input:
            continue
        interval = node_interval(node, intervals)
        if node.name in (prior_intervals or {}):
            interval = intersect(interval, prior_intervals[node.name])  # type: ignore[index]
        intervals[node.name] = interval
        sums = _gamma(node.shape.numel())
        if node.activation is not None:
            parent = node.parents[0]
            slope = node.activation.slope_range(*intervals[parent], closed=True).magnitude.clamp(min=1)
            moved = slope * errors[parent] + sums * (_size(interval) + slope * _size(intervals[parent]))
            moved = moved + node.activation.value_slack
        else:
            moved = sums * (0 if node.bias is None else node.bias.abs())
            for map_, parent in zip(node.maps or (), node.parents, strict=True):
                moved = moved + map_.abs().forward(errors[parent] + _gamma(_terms(map_)) * _size(intervals[parent]))
        errors[node.name] = torch.nan_to_num(moved, nan=torch.inf).expand_as(interval[0])
    return errors


def _size(interval: Interval) -> Tensor:
    """Largest absolute value, enough more than that for the rounding of interval arithmetic itself."""
    return torch.maximum(interval[0].abs(), interval[1].abs()) * (1 + 1e-6)


def _gamma(terms: int) -> float:
    """Relative error of a sum of products, in any order, with a margin for the few operations around it."""
    return 4 * (terms + 16) * torch.finfo(torch.float64).eps


def _terms(map_: LinearMap) -> int:
    """Length of the longest sum in an application of a map or of its adjoint."""
    weights = [t for t in map_.tensors() if t.ndim > 2] if isinstance(map_, (ConvMap, ConvTransposeMap)) else []
    kernel = sum(max(w.shape[:2]) * w[0, 0].numel() for w in weights)
    return kernel or map_.in_numel + map_.out_numel
