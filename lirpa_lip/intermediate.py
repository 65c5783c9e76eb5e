"""Bounds of pre-activations by interval arithmetic, and bounds read from auto_LiRPA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import NonFiniteError
from .graph import NetworkGraph, Node

Interval = tuple[Tensor, Tensor]


def node_interval(node: Node, intervals: Mapping[str, Interval]) -> Interval:
    """Bounds of one node from those of the nodes before it, by interval arithmetic.

    An affine node maps centres by A and half widths by |A|; an activation uses its own range; a node with a shortcut
    also applies it and keeps the tighter.
    """
    if node.activation is not None:
        lower, upper = node.activation.interval(*intervals[node.parents[0]])
    else:
        centre, width = 0, 0
        for map_, parent in zip(node.maps, node.parents):
            low, high = intervals[parent]
            centre = centre + map_.forward((low + high) / 2)
            width = width + map_.abs().forward((high - low) / 2)
        if node.bias is not None:
            centre = centre + node.bias
        lower, upper = centre - width, centre + width
    if node.shortcut is not None:
        ancestor, enclose = node.shortcut
        lower, upper = intersect((lower, upper), enclose(*intervals[ancestor]))
    return lower, upper


def intersect(a: Interval, b: Interval) -> Interval:
    """Intersection of two valid enclosures; where rounding makes it empty, the wider of the two ends is kept."""
    lower, upper = torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])
    crossed = lower > upper
    return torch.where(crossed, torch.minimum(lower, upper), lower), torch.where(
        crossed, torch.maximum(lower, upper), upper
    )


def check_interval(node: Node, interval: Interval) -> None:
    """Raises `NonFiniteError` where a bound is NaN, or so large that arithmetic with it would make NaN."""
    if not all(bool(torch.isfinite(t).all()) for t in interval):
        where = f"a pre-activation bound of {node.operator} at node {node.name!r}"
        raise NonFiniteError(where, "the network's values overflow: scale its weights, or make eps smaller")


def lirpa_intervals(bounded, graph: NetworkGraph) -> dict[str, Interval]:
    """Bounds that auto_LiRPA has left on its nodes after a CROWN pass, for the affine nodes of ``graph``.

    The output is left out: there auto_LiRPA stores bounds of ``C f(x)``.

    They were computed in the model's precision, so they are widened by some of its rounding units.
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
        slack = 64 * torch.finfo(lower.dtype).eps * (1 + torch.maximum(lower.abs(), upper.abs()))
        found[name] = ((lower - slack).to(graph.dtype), (upper + slack).to(graph.dtype))
    return found
