"""The product bound: ``‖W_L S‖ ∏ ‖S^½ W S^½‖`` on a chain, with a sum over sources where paths meet.

Source: Huang et al. (NeurIPS 2021), section 3, there for 0/1 masks on chains. With D = S^½ T S^½, |T| <= 1,
every slope matrix splits between the two maps it stands between, and

    Lip(S_k^½ z_k)  <=  Σ_j ‖S_k^½ M_{k←j} S_j^½‖ · Lip(S_j^½ z_j)

over the sources j of z_k (the input, and activations that reach it through affine maps M alone).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.local.layers import Gain, Layers, root_magnitudes, safe_sqrt, zero_safe_product
from lirpa_lip.local.linearised import Visit, affine_map, pull_back
from lirpa_lip.local.norm_budget import Norm
from lirpa_lip.network.graph import NetworkGraph, Node
from lirpa_lip.network.rounding import absolute, map_gamma, positive_slack, summands
from lirpa_lip.norms.linear_map import ComposedMap, SumMap
from lirpa_lip.regions.sizes import safe_norm


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
    return rate_of(product_norms(graph, node, mask, layers, norm), layers)


def product_norms(
    graph: NetworkGraph, node: Node | None, mask: Tensor | None, layers: Layers, norm: Norm
) -> dict[str, Tensor]:
    """The norm that `product_rate` takes for each source."""
    return masked_norms(graph, node, None if mask is None else safe_sqrt(mask), layers, norm)


def masked_norms(
    graph: NetworkGraph, node: Node | None, root: Tensor | None, layers: Layers, norm: Norm
) -> dict[str, Tensor]:
    """`product_norms` from the root ``S^½`` of the mask."""
    target = graph.output if node is None else _target(node)
    if node is not None and node.isometry_of is not None:
        fold = layers[node.isometry_of.fold].slopes
        root = node.isometry_of.pull_back(fold.centre, fold.stable, root)
    sources = graph.sources(target)
    roots = root_magnitudes(layers, sources)
    return {s: norm(affine_map(graph, s, target), roots.get(s), root) for s in sources}


def rate_of(norms: Mapping[str, Tensor], layers: Layers) -> Tensor:
    """``Σ_j norm_j · Lip(S_j^½ z_j)``, the product bound from its norms."""
    total: Tensor | float = 0.0
    for source, value in norms.items():
        total = total + (zero_safe_product(value, layers[source].live_rate) if source in layers else value)
    return total


def product_rows(
    graph: NetworkGraph,
    target: str,
    cotangent: Tensor,
    layers: Layers,
    eps: Tensor | None = None,
    *,
    visit: Visit | None = None,
) -> Tensor:
    """``Lip(vᵀ z)`` for rows ``v (batch, specs, *shape)`` of a node: exact vector norms, ``(batch, specs)``.

    With ``eps (batch,)`` how far the row can move within that distance of the centre.
    """
    batch, specs = cotangent.shape[:2]
    collected = pull_back(graph, target, cotangent.flatten(0, 1), {}, visit)
    total: Tensor | float = 0.0
    for source, value in collected.items():
        rows = value.reshape(batch, specs, -1)
        if source in layers:
            layer = layers[source]
            root = layer.root
            scaled = rows if root is None else rows * root.flatten(1).unsqueeze(1)
            reach = layer.live_rate if eps is None else layer.reach(eps)
            total = total + zero_safe_product(safe_norm(scaled), reach.unsqueeze(1))
        else:
            size = safe_norm(rows)
            total = total + (size if eps is None else zero_safe_product(eps.unsqueeze(1), size))
    return total


def local_rows(graph: NetworkGraph, target: str, layers: Layers, masked: bool = True) -> dict[str, Tensor]:
    """``‖row_i(M_{k←j}) S_j^½‖`` of an affine node for each source j, ``(batch or 1, *shape)``.

    Args:
        masked: False takes ones for S: rows of the bare weights, which cost next to nothing.
    """
    roots = root_magnitudes(layers, graph.sources(target)) if masked else {}
    return {s: affine_map(graph, s, target).row_norms(roots.get(s)) for s in graph.sources(target)}


def local_ball(
    graph: NetworkGraph, target: str, layers: Layers, eps: Tensor, rows: Mapping[str, Tensor] | None = None
) -> Tensor:
    """How far each neuron of an affine node can move: ``Σ_j ‖row_i(M_{k←j}) S_j^½‖ · eps Lip(S_j^½ z_j)``.

    The published method uses the global product for the radius; here it is the local rate so far.
    """
    reaches = []
    for source, norms in (rows or local_rows(graph, target, layers)).items():
        reach = layers[source].reach(eps) if source in layers else eps
        reach = reach.reshape(-1, *[1] * (norms.ndim - 1))
        reaches.append(zero_safe_product(norms.expand(reach.shape[0], *norms.shape[1:]), reach))
    return torch.stack(torch.broadcast_tensors(*reaches)).sum(0)


@torch.no_grad()
def layer_gains(
    graph: NetworkGraph, target: str, magnitude: Tensor | None, rows: Mapping[str, Tensor], layers: Layers
) -> dict[str, Gain]:
    """`Gain` of every source on an affine node, ``magnitude`` the node's own S (``None`` for ones).

    The smaller of the Frobenius norm and of Schur's bound, the root of the largest row sum times the largest column
    sum of the absolute values, which grows less where rows read few entries.
    """
    found = {}
    root = None if magnitude is None else safe_sqrt(magnitude)
    for source, norms in rows.items():
        map_ = affine_map(graph, source, target)
        scale = norms if root is None else norms * root
        room = 1 + positive_slack(scale[0].numel() + summands(map_), graph.dtype)
        steepest = torch.ones_like(norms[:1].flatten(1).amax(1))
        for s in (magnitude, layers[source].slopes.magnitude if source in layers else None):
            steepest = steepest if s is None else steepest * s.flatten(1).amax(1)
        schur = steepest.sqrt() * _schur(graph, source, target) * room
        frobenius = safe_norm(scale.flatten(1)) * room
        if isinstance(map_, (ComposedMap, SumMap)):
            # entries that are sums of products may cancel; the absolute values that enter them do not
            found[source] = Gain(torch.minimum(frobenius + map_gamma(map_) * schur, schur), schur, map_gamma(map_))
        else:
            least = torch.minimum(frobenius, schur)
            found[source] = Gain(least, least, map_gamma(map_))
    return found


def _schur(graph: NetworkGraph, source: str, target: str) -> float:
    """Schur's bound of the norm of the absolute values of all affine paths from ``source`` to ``target``."""
    key = ("schur", source, target)
    if key not in graph._cache:
        ends = (torch.ones(1, *graph[n].shape, dtype=graph.dtype, device=graph.device) for n in (source, target))
        start, end = ends
        rows = _absolute_forward(graph, source, target, start)
        columns = _absolute_adjoint(graph, source, target, end)
        graph._cache[key] = float(rows.max()) ** 0.5 * float(columns.max()) ** 0.5
    return graph._cache[key]


def _parents_from(graph: NetworkGraph, source: str, target: str):
    for map_, parent in zip(graph[target].maps or (), graph[target].parents):
        if parent == source or (graph[parent].maps is not None and source in graph.sources(parent)):
            yield absolute(graph, map_), parent


def _absolute_forward(graph: NetworkGraph, source: str, target: str, x: Tensor) -> Tensor:
    if source == target:
        return x
    parts = (m.forward(_absolute_forward(graph, source, p, x)) for m, p in _parents_from(graph, source, target))
    return sum(parts, torch.zeros((), dtype=x.dtype, device=x.device))


def _absolute_adjoint(graph: NetworkGraph, source: str, target: str, y: Tensor) -> Tensor:
    if source == target:
        return y
    parts = (_absolute_adjoint(graph, source, p, m.adjoint(y)) for m, p in _parents_from(graph, source, target))
    return sum(parts, torch.zeros((), dtype=y.dtype, device=y.device))
