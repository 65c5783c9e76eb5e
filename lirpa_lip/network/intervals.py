"""Bounds of pre-activations by interval arithmetic, and bounds read from auto_LiRPA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.errors import NonFiniteError
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.linear_bound_errors import linear_bound_rounding
from lirpa_lip.network.node import Interval, Node


def check_interval(node: Node, interval: Interval) -> None:
    """Raises `NonFiniteError` where a bound is NaN, or so large that arithmetic with it would make NaN."""
    if not all(bool(torch.isfinite(t).all()) for t in interval):
        where = f"a pre-activation bound of {node.operator} at node {node.name!r}"
        raise NonFiniteError(where, "the network's values overflow: scale its weights, or make eps smaller")


def used_intervals(bounded: Any, graph: NetworkGraph) -> dict[str, Interval]:
    """The bounds that auto_LiRPA has left on its nodes after a pass in float64, as its lines took them, by node."""
    found = {}
    for node in graph:
        traced = bounded._modules.get(node.name)
        lower, upper = getattr(traced, "lower", None), getattr(traced, "upper", None)
        # on the output it leaves bounds of C f(x)
        if node.is_input or node.name == graph.output or lower is None or upper is None:
            continue
        if lower.shape[1:] == node.shape:
            found[node.name] = lower.double(), upper.double()
    return found


def lirpa_intervals(
    bounded: Any, graph: NetworkGraph, box: Interval, errors: Mapping[str, Tensor] | None = None
) -> dict[str, Interval]:
    """Bounds that auto_LiRPA has left on its nodes after a CROWN pass in float64, for the affine nodes of ``graph``.

    The output is left out: there auto_LiRPA stores bounds of ``C f(x)``. ``box`` encloses the region of the pass; the
    bounds are widened by what rounding may have taken from them: ``errors``, or `linear_bound_rounding`.
    """
    used = used_intervals(bounded, graph)
    errors = linear_bound_rounding(graph, box, used) if errors is None else errors
    return {
        name: (
            _cast(lower - errors[name], graph.dtype, -torch.inf),
            _cast(upper + errors[name], graph.dtype, torch.inf),
        )
        for name, (lower, upper) in used.items()
        if graph[name].maps is not None
    }


def _cast(bound: Tensor, dtype: torch.dtype, outwards: float) -> Tensor:
    if bound.dtype == dtype:
        return bound
    narrow = bound.to(dtype)
    return narrow + (torch.nextafter(narrow, torch.full_like(narrow, outwards)) - narrow).detach()
