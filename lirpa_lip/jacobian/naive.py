"""The product of layer norms: what every other bound must not exceed.

``r(x) = 1``, ``r(Σ_p A_p z_p) = Σ_p ‖A_p‖ r(z_p)``, ``r(f(z)) = max|slope| · r(z)``, in one norm throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.local.linearised import pull_back
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import absolute, total_gamma
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.linear_map import LinearMap
from lirpa_lip.regions.sizes import safe_norm


@torch.no_grad()
def naive_bounds(
    graph: NetworkGraph, slopes: Mapping[str, SlopeRange], seed: Tensor, norm: float
) -> tuple[Tensor, Tensor]:
    """Constants of the rows ``(batch, rows)``, and of the whole matrix ``(batch,)``.

    Args:
        slopes: Clarke slopes of every activation; the largest of each layer counts.
        seed: rows of C, ``(batch, rows, *output shape)``.
    """
    batch = len(seed)
    rates = {graph.input: torch.ones(batch, dtype=graph.dtype, device=graph.device)}
    for node in graph:
        if node.maps is not None:
            rates[node.name] = sum(map_norm(graph, m, norm) * rates[p] for m, p in zip(node.maps, node.parents))
        elif node.activation is not None:
            rates[node.name] = slopes[node.name].magnitude.flatten(1).amax(1) * rates[node.parents[0]]
    collected = pull_back(graph, graph.output, seed.flatten(0, 1), {})
    rows, columns = seed.new_zeros(seed.shape[:2]), seed.new_zeros(batch)
    for source, value in collected.items():
        flat = value.reshape(batch, seed.shape[1], -1)
        rate = rates[source]
        rows = rows + _dual(flat, norm) * rate.unsqueeze(1)
        columns = columns + flat.abs().sum(1).amax(-1) * rate
    room = 1 + 16 * total_gamma(graph)
    rows = rows * room
    if norm == math.inf:
        return rows, rows.amax(1)
    if norm == 1:
        return rows, columns * room
    # for the identity, the product of all layers may be less than the rows' root of squares
    whole = rows.square().sum(1).sqrt() * room
    outputs = graph[graph.output].shape.numel()
    eye = torch.eye(outputs, dtype=seed.dtype, device=seed.device)
    if seed.shape[1] == outputs and bool((seed.flatten(2) == eye).all()):
        whole = torch.minimum(whole, rates[graph.output] * room)
    return rows, whole


def _dual(rows: Tensor, norm: float) -> Tensor:
    """Norm of a row as a map from ℓ_p: the dual norm."""
    if norm == math.inf:
        return rows.abs().sum(-1)
    return safe_norm(rows) if norm == 2 else rows.abs().amax(-1)


def map_norm(graph: NetworkGraph, map_: LinearMap, norm: float) -> Tensor:
    """Upper bound of ``‖A‖_p``: row sums, column sums, or a certified spectral norm; remembered."""
    key = ("norm", id(map_), norm)
    if key not in graph._cache:
        like = dict(dtype=graph.dtype, device=graph.device)
        if 0 in (map_.in_numel, map_.out_numel):  # a part of nothing
            value = torch.zeros((), **like)
        elif norm == math.inf:
            value = absolute(graph, map_).forward(torch.ones(1, *map_.in_shape, **like)).max()
        elif norm == 1:
            value = absolute(graph, map_).adjoint(torch.ones(1, *map_.out_shape, **like)).max()
        else:
            value = masked_spectral_norm(map_.detach(), certificate="deterministic").upper.max()
        graph._cache[key] = value.to(**like)
    return graph._cache[key]
