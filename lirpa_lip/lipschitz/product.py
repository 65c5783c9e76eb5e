"""The product bound: ``‖W_L S‖ ∏ ‖S^½ W S^½‖`` on a chain, with a sum over sources where paths meet.

Source: Huang et al. (NeurIPS 2021), section 3, there for 0/1 masks on chains. With D = S^½ T S^½, |T| <= 1,
every slope matrix splits between the two maps it stands between, and

    Lip(S_k^½ z_k)  <=  Σ_j ‖S_k^½ M_{k←j} S_j^½‖ · Lip(S_j^½ z_j)

over the sources j of z_k (the input, and activations that reach it through affine maps M alone).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.graph import NetworkGraph, Node
from lirpa_lip.region import safe_norm

from .layers import Layers, root_magnitudes, safe_sqrt
from .linearised import affine_map, pull_back
from .oracle import Norm


def product_plan(graph: NetworkGraph, node: Node | None) -> int:
    """Number of norms `product_rate` takes for an activation, or for the whole output where ``node`` is ``None``."""
    return len(graph.sources(_target(node) if node is not None else graph.output))


def _target(node: Node) -> str:
    return node.isometry_of.source if node.isometry_of is not None else node.parents[0]


def product_rate(graph: NetworkGraph, node: Node | None, mask: Tensor | None, layers: Layers, norm: Norm) -> Tensor:
    """``Lip(diag(mask)^½ z)`` of an activation's pre-activation, or of the network's output, ``(batch,)``.

    An activation that clips the outputs of a pairwise sort looks through the sort, which is orthogonal, to its input:
    a constant output then eliminates the row it comes from if the order is known.

    Args:
        mask: ``(batch, *shape)``, the slopes' magnitude S; ``None`` for ones.
    """
    target = graph.output if node is None else _target(node)
    if node is not None and node.isometry_of is not None:
        fold = layers[node.isometry_of.fold].slopes
        mask = node.isometry_of.pull_back(fold.centre, fold.stable, mask)
    mask_out = None if mask is None else safe_sqrt(mask)
    total: Tensor | float = 0.0
    roots = root_magnitudes(layers, graph.sources(target))
    for source in graph.sources(target):
        value = norm(affine_map(graph, source, target), roots.get(source), mask_out)
        if source in layers:
            value = times(value, layers[source].magnitude)
        total = total + value
    return total


def times(norm: Tensor, rate: Tensor) -> Tensor:
    """``norm * rate`` with 0 * inf = 0: a map that is zero passes nothing on, however fast its input.

    What underflows is not zero, but at most the least normal number.
    """
    product = norm * rate
    least = torch.finfo(product.dtype).tiny
    lost = (product.detach() < least) & (norm.detach() != 0) & (rate.detach() != 0)
    return torch.where(norm == 0, torch.zeros_like(norm), torch.where(lost, product + least, product))


def product_rows(graph: NetworkGraph, target: str, cotangent: Tensor, layers: Layers) -> Tensor:
    """``Lip(vᵀ z)`` for rows ``v (batch, specs, *shape)`` of a node: exact vector norms, ``(batch, specs)``."""
    batch, specs = cotangent.shape[:2]
    collected = pull_back(graph, target, cotangent.flatten(0, 1), {})
    total: Tensor | float = 0.0
    for source, value in collected.items():
        rows = value.reshape(batch, specs, -1)
        if source in layers:
            root = safe_sqrt(layers[source].slopes.magnitude).flatten(1).unsqueeze(1)
            total = total + times(safe_norm(rows * root), layers[source].magnitude.unsqueeze(1))
        else:
            total = total + safe_norm(rows)
    return total


def local_ball(graph: NetworkGraph, target: str, layers: Layers, eps: Tensor) -> Tensor:
    """How far each neuron of an affine node can move: ``eps Σ_j ‖row_i(M_{k←j}) S_j^½‖ Lip(S_j^½ z_j)``.

    The published method uses the global product for the radius; here it is the local rate so far.
    """
    reaches = []
    roots = root_magnitudes(layers, graph.sources(target))
    for source in graph.sources(target):
        rows = affine_map(graph, source, target).row_norms(roots.get(source))
        if source in layers:
            rate = layers[source].magnitude.reshape(-1, *[1] * (rows.ndim - 1))
            rows = times(rows.expand(rate.shape[0], *rows.shape[1:]), rate)
        reaches.append(rows)
    total = torch.stack(torch.broadcast_tensors(*reaches)).sum(0)
    return eps.reshape(-1, *[1] * (total.ndim - 1)) * total
