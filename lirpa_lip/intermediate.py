"""Bounds of pre-activations by interval arithmetic, and bounds read from auto_LiRPA."""

from __future__ import annotations

import torch

from .errors import NonFiniteError
from .graph import NetworkGraph
from .operators.node import Interval, Node, intersect, node_interval  # noqa: F401  (others take them from here)


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
