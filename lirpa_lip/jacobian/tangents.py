"""Tangents pushed forward from a node to the output: upper bounds of linear functions of its cotangents.

The relaxations they meet are those of activations nearer to the output, which the backward pass has bounded before.
Source: Shi et al., NeurIPS 2022, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.jacobian.forward import Interval
from lirpa_lip.jacobian.moving import MIXES, MovingSlopes, input_maximum
from lirpa_lip.jacobian.products import Products
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import node_gamma


@dataclass(frozen=True)
class Backward:
    """Bounds of all cotangents for rows ``C (batch, rows, *out)`` of one batch of domains.

    Attributes:
        seed: the rows.
        cotangents: bounds at each activation's output and, as entries of the Jacobian, at the input;
            ``(batch, rows, *shape)``.
        slack: what rounding may add to the bound of a tangent t that leaves a node is ``|t| · slack``, with the
            tangents as they are pushed; ``(batch, rows, *shape)``.
        relaxed: relaxation of each activation's product.
        moving: how the slopes of smooth activations follow the input.
    """

    seed: Tensor
    cotangents: dict[str, Interval]
    slack: dict[str, Tensor]
    relaxed: dict[str, Products]
    moving: MovingSlopes | None = None


def push_tangent(
    graph: NetworkGraph, source: str, tangents: Tensor, result: Backward, trace: dict | None = None
) -> Tensor:
    """Upper bounds of ``a · g_source`` for tangents a ``(batch, rows, k, *shape)``: ``(batch, rows, k)``.

    Args:
        source: the input, or an activation (its output) all of whose later activations are relaxed in ``result``.
        trace: where given, receives the tangent that meets each activation.
    """
    bound = _pushed(graph, source, tangents, result, trace, None)
    if result.moving is not None and _moves(graph, source, result.moving):
        for mix in MIXES:
            bound = torch.fmin(bound, _pushed(graph, source, tangents, result, None, (result.moving, mix)))
    return bound


def _moves(graph: NetworkGraph, source: str, moving: MovingSlopes) -> bool:
    """Whether a tangent from ``source`` meets a slope that moves."""
    return any(name in moving.slope_lines for name, _ in _uses(graph, source))


def _pushed(
    graph: NetworkGraph,
    source: str,
    tangents: Tensor,
    result: Backward,
    trace: dict | None,
    moves: tuple[MovingSlopes, tuple[float | None, int]] | None,
) -> Tensor:
    """`push_tangent` with slopes from their ranges, or as they move."""
    lead = tangents.shape[:3]
    left: dict[str, Tensor] = {}
    values = {source: tangents.flatten(0, 2)}
    constant = torch.zeros(lead, dtype=tangents.dtype, device=tangents.device)
    errors = _error(result, source, tangents)
    uses = _uses(graph, source)
    for name, last in uses:
        node = graph[name]
        if node.maps is not None:
            total = sum(m.forward(values[p]) for m, p in zip(node.maps, node.parents) if p in values)
        else:
            tangent = values[node.parents[0]].reshape(*lead, *node.shape)
            if trace is not None:
                trace[name] = tangent
            if moves is not None and name in moves[0].slope_lines:
                mixed = moves[0].mixed(name, result.cotangents[name], moves[1])
                total, rows, added = mixed.upper_of(tangent)
                left[node.parents[0]] = left.get(node.parents[0], 0) + rows
            else:
                total, added = result.relaxed[name].upper(tangent)
            total, constant = total.flatten(0, 2), constant + added
        values[name] = total
        errors = errors + _error(result, name, total.reshape(*lead, *node.shape))
        for done in last:
            del values[done]
    if left and moves is not None:
        constant = constant + input_maximum(graph, moves[0], left, lead)
    if graph.output not in values:
        return constant + errors * (1 + node_gamma(graph)) + _LAST * constant.abs()
    out = values[graph.output].reshape(*lead, -1)
    bound = (out * result.seed.flatten(2).unsqueeze(2)).sum(-1) + constant
    return bound + errors * (1 + node_gamma(graph)) + _LAST * (bound.abs() + constant.abs())


#: Relative rounding of the last few sums.
_LAST = 8 * torch.finfo(torch.float64).eps


def _error(result: Backward, name: str, tangents: Tensor) -> Tensor:
    """``|t| · slack`` of tangents ``(batch, rows, k, *shape)`` that leave a node, ``(batch, rows, k)``."""
    slack = result.slack[name].flatten(2).unsqueeze(3)
    # slack may be infinite where a tangent is 0
    return torch.nan_to_num((tangents.flatten(3).abs() @ slack).squeeze(3), nan=torch.inf)


def _uses(graph: NetworkGraph, source: str) -> list[tuple[str, list[str]]]:
    """The nodes after ``source`` that depend on it, each with the values that are not needed after it."""
    key = ("uses", source)
    if key not in graph._cache:
        reached, order = {source}, []
        on_path = set(graph.ancestors(graph.output))
        for node in graph:
            if node.name in on_path and any(p in reached for p in node.parents):
                reached.add(node.name)
                order.append(node.name)
        last: dict[str, str] = {}
        for name in order:
            for parent in graph[name].parents:
                if parent in reached:
                    last[parent] = name
        graph._cache[key] = [(n, [p for p, at in last.items() if at == n]) for n in order]
    return graph._cache[key]
