"""What rounding does to rates of change: error terms of rows whose Lipschitz constant is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.local.layers import Layers, safe_sqrt, zero_safe_product
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import absolute, map_gamma, summands, widest
from lirpa_lip.norms.linear_map import LinearMap


@dataclass(frozen=True)
class RateErrors:
    """Error terms over one region.

    A value h_i of activation j moves no faster than ``S_i^½ Lip(S^½ z_j)``, so that rounding of a row ``v A`` adds at
    most ``γ |v| |A| S^½ Lip(S^½ z_j)`` to its rate.

    Attributes:
        speed: how fast each entry of a node can move, ``(batch or 1, *shape)``.
        slack: of affine nodes: a row v that meets one is off by ``|v| · slack``.
        underflow: what products that underflow may add in all, ``(batch or 1, 1)``.
    """

    speed: dict[str, Tensor]
    slack: dict[str, Tensor]
    underflow: Tensor


@torch.no_grad()
def rate_errors(graph: NetworkGraph, layers: Layers) -> RateErrors:
    """Error terms for the given layers."""
    start = graph[graph.input].shape
    tiny = torch.finfo(graph.dtype).tiny
    speed = {graph.input: torch.ones(1, *start, dtype=graph.dtype, device=graph.device)}
    slack: dict[str, Tensor] = {}
    underflow = torch.zeros(1, 1, dtype=graph.dtype, device=graph.device)
    for node in graph:
        if node.name in layers:
            layer = layers[node.name]
            rate = layer.live_rate.reshape(-1, *[1] * len(node.shape))
            speed[node.name] = zero_safe_product(safe_sqrt(layer.slopes.magnitude), rate.expand_as(layer.anchor))
        elif node.maps is not None:
            parts = []
            for map_, parent in zip(node.maps, node.parents):
                passed = absolute(graph, map_).forward(speed[parent])
                parts.append((passed, 4 * map_gamma(map_) * passed))
                lost = tiny * (summands(map_) + 4) * (speed[parent].flatten(1).sum(1, keepdim=True) + widest(graph))
                underflow = underflow + lost
            speed[node.name], slack[node.name] = (sum(p[1:], p[0]) for p in zip(*parts))
    return RateErrors(speed, slack, underflow)


@torch.no_grad()
def raised(graph: NetworkGraph, rows: Tensor, rates: Tensor, layers: Layers, errors: RateErrors) -> Tensor:
    """Rates with what underflow may have lost; rows that provably reach no input keep their 0.

    Args:
        rows: ``(batch, specs, *shape)`` of the output.
        rates: ``(batch, specs)``.
    """
    found = rates + errors.underflow
    still = rates == 0
    if not bool(still.any()):
        return found
    return torch.where(still & ~_reach_input(graph, rows, layers), rates, found)


def _reach_input(graph: NetworkGraph, rows: Tensor, layers: Layers) -> Tensor:
    """Whether a row and the input are connected by weights and slopes other than 0, ``(batch, specs)``."""
    batch, specs = rows.shape[:2]
    pending = {graph.output: (rows != 0).to(rows.dtype).flatten(0, 1)}
    for name in reversed(graph.ancestors(graph.output)):
        if name not in pending or name == graph.input:
            continue
        node, alive = graph[name], pending.pop(name)
        if node.maps is not None:
            parts = [_pattern(m).adjoint(alive) for m in node.maps]
        else:
            live = (layers[name].slopes.magnitude != 0).repeat_interleave(specs, dim=0)
            parts = [alive * live]
        for parent, part in zip(node.parents, parts):
            part = (part != 0).to(part.dtype)
            pending[parent] = torch.maximum(pending[parent], part) if parent in pending else part
    reached = pending.get(graph.input)
    if reached is None:
        return torch.zeros(batch, specs, dtype=torch.bool, device=rows.device)
    return (reached != 0).reshape(batch, specs, -1).any(2)


def _pattern(map_: LinearMap) -> LinearMap:
    """The map with every weight other than 0 replaced by 1."""

    def ones(t: Tensor) -> Tensor:
        return (t != 0).to(t.dtype)

    return map_.abs().rebuild(ones, ones)
