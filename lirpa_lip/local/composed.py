"""The composed bound: each slope matrix is its centre plus a bounded rest, and norms are taken of whole compositions.

Write D = C + E with C the centre of the slope range and |E| <= R. Expanding the Jacobian of z_k,

    Lip(R_k^½ z_k)  <=  sup { ‖ Σ_j R_k^½ G_{k←j} R_j^½ t_j ‖ : ‖t_j‖ <= r_j },        r_input = 1,

where G is the network linearised at the centres and r_j = Lip(R_j^½ z_j). The triangle inequality gives the sum of
the norms of the terms. One norm of all terms side by side is never worse: for any weights w_j > 0

    ‖Σ_j M_j t_j‖  <=  ‖[√w_1 M_1, √w_2 M_2, …]‖ · (Σ_j r_j² / w_j)^½,

and w_j = r_j / ‖M_j‖ recovers at most Σ_j ‖M_j‖ r_j. It is also cheaper: one norm per layer instead of one per pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from lirpa_lip.local.layers import Gain, Layers, centres, safe_sqrt, zero_safe_product
from lirpa_lip.local.linearised import StackedMap, Visit, pull_back
from lirpa_lip.local.norm_budget import JointNorm, Norm
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.sizes import safe_norm

#: Joint steps on the leading vector and the weights before the norm is certified.
_WEIGHT_STEPS = 6
#: Sizes of terms between which float32 finds the weights: squares of their factors are far from the ends of its range.
_SINGLE = (1e-12, 1e12)


def composed_rate(
    graph: NetworkGraph,
    target: str,
    mask: Tensor | None,
    layers: Layers,
    norm: Norm,
    *,
    gains: Mapping[str, Gain] | None = None,
) -> Tensor:
    """``Lip(diag(mask)^½ z)`` of a node by one norm of all terms, ``(batch,)``; ``mask`` of ``None`` for ones.

    Args:
        gains: of the target, for a mask that is at least this one; with them the rounding of compositions is counted.
    """
    batch = mask.shape[0] if mask is not None else (next(iter(layers.values())).lower.shape[0] if layers else 1)
    stacked, radii = stacked_map(graph, target, mask, layers, batch)
    if isinstance(norm, JointNorm):
        return norm.joint(stacked, radii)
    roots, sources, weighted = _root_weights(stacked, radii), stacked.scales, {}
    for index, (name, scale) in enumerate(sources.items()):
        weighted[name] = roots[:, index].reshape(-1, *[1] * (scale.ndim - 1)) * scale
    value = norm(StackedMap(graph, target, stacked.slopes, weighted, stacked.out_scale))
    if gains is not None:
        map_size = min(sum(s[0].numel() for s in sources.values()), graph[target].shape.numel())
        value = value + map_size**0.5 * _composition_error(layers, gains, sources, roots)
    positive = roots > 0
    return zero_safe_product(value, safe_norm(torch.where(positive, radii / torch.where(positive, roots, 1.0), 0.0)))


def stacked_map(
    graph: NetworkGraph, target: str, mask: Tensor | None, layers: Layers, batch: int
) -> tuple[StackedMap, Tensor]:
    """All terms of ``diag(mask)^½ z`` side by side, and their radii r_j, ``(batch, sources)``.

    The sources are the input and every activation before ``target`` with some open neuron.
    """
    scales, radii = {}, []
    for name in graph.ancestors(target):
        if name == graph.input:
            scales[name] = torch.ones(batch, *graph[name].shape, dtype=graph.dtype, device=graph.device)
            radii.append(torch.ones(batch, dtype=graph.dtype, device=graph.device))
        elif name in layers and layers[name].is_open:
            scales[name] = layers[name].open_root
            radii.append(layers[name].open_rate)
    out_scale = None if mask is None else safe_sqrt(mask)
    return StackedMap(graph, target, centres(layers), scales, out_scale), torch.stack(radii, dim=1)


@torch.no_grad()
def _composition_error(
    layers: Layers, gains: Mapping[str, Gain], sources: Mapping[str, Tensor], roots: Tensor
) -> Tensor:
    """How far the stacked map of a target, as its steps are computed, can be from the exact one on a unit vector.

    With A the gains of one layer on the next, n_l bounds the values at layer l, e_l their error:

        n_l = Σ_j A_lj (n_j + √w_j),        e_l = Σ_j A_lj e_j + γ ‖|A_lj|‖ (n_j + √w_j).

    Args:
        roots: ``√w``, ``(batch, sources)``.
    """
    entering = {name: roots[:, index] for index, name in enumerate(sources)}
    values: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    zero = torch.zeros_like(roots[:, 0])
    # what underflow takes from each entry
    lost = (1 << 20) * torch.finfo(roots.dtype).tiny

    def of(table: Mapping[str, Gain]) -> tuple[Tensor, Tensor]:
        value = error = zero
        for name, gain in table.items():
            size = values.get(name, zero) + entering.get(name, zero)
            value = value + zero_safe_product(gain.norm, size)
            error = (
                error
                + zero_safe_product(gain.norm, errors.get(name, zero))
                + 4 * gain.gamma * zero_safe_product(gain.size, size)
            )
            error = error + torch.where((gain.size > 0) & (size > 0), lost, 0.0)
        return value, error

    for name in layers:
        if name in layers.gains:
            values[name], errors[name] = of(layers.gains[name])
    return of(gains)[1]


@torch.no_grad()
def _root_weights(map_: StackedMap, radii: Tensor) -> Tensor:
    """``√w_j``, ``w_j = r_j / ‖M_jᵀ u‖``, at an approximate leading left vector u, ``(batch, sources)``.

    A source that cannot move (r = 0) gets weight 0. Any positive weights are valid; these balance the terms. (The
    weights themselves may leave the range of float64 where rates do not.) So they are looked for in float32, which is
    several times faster, and in float64 only where values come near what float32 holds.
    """
    usable = torch.isfinite(radii)
    radii = torch.where(usable, radii, torch.zeros_like(radii))
    if radii.shape[1] == 1:
        return torch.ones_like(radii)
    map_ = cast(StackedMap, map_.detach())
    found = None
    if map_.dtype == torch.float64 and bool((radii < _SINGLE[1]).all()):
        found = _balanced_weights(map_.to(torch.float32), radii.float(), *_SINGLE)
    if found is None:
        found = _balanced_weights(map_, radii, 0.0, torch.inf)
    assert found is not None
    # an infinite radius keeps the bound infinite: its weight must not be 0
    return torch.where(usable, found.to(radii.dtype), torch.ones_like(radii))


def _balanced_weights(map_: StackedMap, radii: Tensor, least: float, most: float) -> Tensor | None:
    """The weights, or ``None`` where the terms of a sample are not between the two sizes."""
    # any start serves: these weights are no certificate, and a fixed one makes results repeatable
    start = torch.randn(map_.in_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left = map_.forward(_spread(radii, map_) * start.to(map_.device, map_.dtype))
    for _ in range(_WEIGHT_STEPS):
        size = safe_norm(left.flatten(1)).reshape(-1, *[1] * (left.ndim - 1))
        right = map_.adjoint(left / torch.where(size > 0, size, 1.0))
        sizes = torch.stack([safe_norm(p) for p in right.split(map_.sizes, dim=1)], dim=1)
        # no term counts for less than a thousandth of the largest: that depends on the units of no layer
        shares = sizes * radii
        if least > 0 and not bool(((shares > least) & (shares < most) | (radii == 0)).all()):
            return None
        largest = shares.amax(1, keepdim=True)
        shares = torch.maximum(shares, 1e-3 * torch.where(largest > 0, largest, 1.0))
        roots = radii / shares.sqrt()
        spread = _spread(roots, map_)
        left = map_.forward(spread * (spread * right))
    return roots


def _spread(values: Tensor, map_: StackedMap) -> Tensor:
    """A number for each source, ``(batch, sources)``, at every one of its coordinates, ``(batch, numel)``."""
    return torch.cat([v.unsqueeze(1).expand(-1, n) for v, n in zip(values.T, map_.sizes)], dim=1)


def composed_rows(
    graph: NetworkGraph, target: str, cotangent: Tensor, layers: Layers, visit: Visit | None = None
) -> Tensor:
    """``Lip(vᵀ z)`` of rows ``v (batch, specs, *shape)``: ``‖a_0‖ + Σ_j ‖R_j^½ a_j‖ r_j``, ``(batch, specs)``."""
    total: Tensor | float = 0.0
    for name, rows in row_terms(graph, target, cotangent, layers, visit).items():
        if name in layers:
            root = safe_sqrt(layers[name].slopes.radius).flatten(1).unsqueeze(1)
            total = total + zero_safe_product(safe_norm(rows.flatten(2) * root), layers[name].open_rate.unsqueeze(1))
        else:
            total = total + safe_norm(rows.flatten(2))
    return total


def row_terms(
    graph: NetworkGraph, target: str, cotangent: Tensor, layers: Layers, visit: Visit | None = None
) -> dict[str, Tensor]:
    """Rows pulled back to the input and to every activation's output, ``(batch, specs, *shape)`` each."""
    batch, specs = cotangent.shape[:2]
    slopes = {name: c.repeat_interleave(specs, dim=0) for name, c in centres(layers).items()}
    collected = pull_back(graph, target, cotangent.flatten(0, 1), slopes, visit)
    return {name: value.reshape(batch, specs, *value.shape[1:]) for name, value in collected.items()}
