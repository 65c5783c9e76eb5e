"""Scales of the factors of products, shifted from one to the other so that both move alike over a region.

A product is x y = (s² − d²)/2 with s = (t x + y/t)/√2 and d = (t x − y/t)/√2 for any t > 0. What is left of it beside
its tangent is bounded by (t w_x + w_y/t)²/4 for factors that move by up to w_x and w_y: at t² = w_y/w_x that is
w_x w_y, the bound of a product of two such moves. The scales are powers of two, which round nothing; any are valid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.norms.linear_map import ComposedMap, DiagonalMap

#: Largest power of two that is shifted.
_MOST = 12
#: Least move of an entry, as a share of the mean.
_LEAST = 0.25


@torch.no_grad()
def balanced(graph: NetworkGraph, centre: Tensor, points: list[Tensor]) -> NetworkGraph:
    """The same network, with the factors of its products scaled by how far they move from the centre to the points."""
    turned = [node for node in graph if node.factors]
    if not turned:
        return graph
    start = graph.values(centre)
    moves = {node.parents[0]: torch.zeros(graph[node.parents[0]].shape, dtype=graph.dtype, device=graph.device)
             for node in turned}  # fmt: skip
    for point in points:
        values = graph.values(point)
        for name, move in moves.items():
            moves[name] = torch.maximum(move, (values[name] - start[name]).abs().mean(0))
    nodes = dict(graph.nodes)
    for node in turned:
        scale = _scales(moves[node.parents[0]])
        assert node.maps is not None
        shifted = ComposedMap([node.maps[0], DiagonalMap(scale, scale.shape)])
        nodes[node.name] = replace(node, maps=(shifted,))
    return NetworkGraph(nodes, graph.input, graph.output, graph.dtype, graph.device)


def _scales(move: Tensor) -> Tensor:
    """``(t, 1/t)`` for moves ``(2, *shape)`` of the two factors."""
    move = torch.nan_to_num(move, nan=0.0, posinf=0.0)
    # an entry that happens to stand still at these points may move elsewhere
    first, second = (torch.maximum(m, _LEAST * m.mean()) for m in move)
    still = (first == 0) | (second == 0)
    power = (torch.where(still, 1.0, second / torch.where(still, 1.0, first)).log2() / 2).round().clamp(-_MOST, _MOST)
    return torch.stack([torch.exp2(power), torch.exp2(-power)])
