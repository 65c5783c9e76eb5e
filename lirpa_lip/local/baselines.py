"""Bounds of other methods, from the same parts: global norm products, LipLT's composition, SDP-CROWN's relaxation.

* *Global product* (GloRo: Leino, Wang & Fredrikson, ICML 2021): the product bound where every slope may take any value
  its activation has anywhere. A margin's row enters the last factor, an exact vector norm for each pair of classes.
* *Global composed* (LipLT: Fazlyab et al., NeurIPS 2023): the composed bound on the same ranges.
* *SDP-CROWN's relaxation* (Chiu et al., ICML 2025, arXiv 2506.06665), our rendering. A layer's pre-activations lie in
  the ball of radius ρ = eps · (product of the global norms before it). Over that ball, for any g and λ > 0,

      cᵀf(z)  >=  gᵀz + h,   h = −½ (λ (ρ² − ‖ẑ‖²) + ‖φ‖² / λ),   φ_i = min(c_i − g_i − λ ẑ_i, g_i + λ ẑ_i, 0)

  for a ReLU f. `OpenNeurons.support` is this bound around the centre: with equal weights R on all neurons its
  multiplier is the paper's λ/2, up to scale. It also knows the interval that the ball implies for each neuron, so that
  for the same g it is never looser. g is free for every row and neuron, and found by gradient as in the paper.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.local.composed import composed_rate, composed_rows
from lirpa_lip.local.deviation import Deviation, taken
from lirpa_lip.local.layers import Layer, Layers
from lirpa_lip.local.norm_budget import Norm
from lirpa_lip.local.product import local_ball, product_rate, product_rows
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region

_LEARNING_RATE = 0.1


def global_layers(graph: NetworkGraph, norm: Norm, composed: bool = False, inner_folds: bool = True) -> Layers:
    """Slopes and rates that hold on the whole input space, as layers of one sample.

    Args:
        norm: planned for `lirpa_lip.local.propagate.planned_norms`.
        composed: bound the rates by compositions too, and take the smaller.
        inner_folds: whether rates of folds inside clipped sorts, through which the product bound looks, are wanted;
            False leaves them infinite.
    """
    layers = Layers()
    skipped = set() if inner_folds else {n.isometry_of.fold for n in graph.activations if n.isometry_of is not None}
    for node in graph.activations:
        assert node.activation is not None
        parent = node.parents[0]
        zero = torch.zeros(1, *graph[parent].shape, dtype=graph.dtype, device=graph.device)
        # as far as slopes can be told apart without overflow
        far = zero + torch.finfo(graph.dtype).max ** 0.5
        slopes = node.activation.slope_range(-far, far)
        product = zero.new_full((1,), torch.inf)
        if node.name not in skipped:
            product = product_rate(graph, node, slopes.magnitude, layers, norm).reshape(-1)
        live_rate = product
        positive = slopes.magnitude > 0
        share = torch.where(positive, slopes.radius / torch.where(positive, slopes.magnitude, 1.0), 0.0)
        open_rate = product * share.max().sqrt()  # R <= share · S
        if composed:
            live_rate = torch.minimum(product, composed_rate(graph, parent, slopes.magnitude, layers, norm))
            open_rate = torch.minimum(open_rate, composed_rate(graph, parent, slopes.radius, layers, norm))
        layers[node.name] = Layer(node.name, parent, node.activation, -far, far, zero, slopes, live_rate, open_rate)
    return layers


def global_lipschitz(graph: NetworkGraph, c: Tensor, layers: Layers, composed: bool = False) -> Tensor:
    """``Lip(c_s · f)`` on the whole input space, ``(batch, specs)``, for rows ``c (batch, specs, outputs)``.

    Args:
        layers: of `global_layers`, made with the same ``composed``.
    """
    batch, specs = c.shape[:2]
    # one sample with all rows: the layers are the same for every sample
    rows = c.reshape(1, batch * specs, *graph[graph.output].shape)
    value = product_rows(graph, graph.output, rows, layers)
    if composed:
        value = torch.minimum(value, composed_rows(graph, graph.output, rows, layers))
    return value.reshape(batch, specs)


def sdp_crown_layers(graph: NetworkGraph, region: Region, layers: Layers) -> Layers:
    """`global_layers` around the samples of a region: anchors, balls of the global radius, and what they imply.

    Slopes stay free on all neurons, and all neurons of a layer have the same weight.
    """
    values = graph.values(region.centre)
    around = Layers()
    for name, layer in layers.items():
        anchor = values[layer.parent]
        reach = local_ball(graph, layer.parent, layers, region.eps)
        slopes = SlopeRange(layer.slopes.low.expand_as(anchor), layer.slopes.high.expand_as(anchor))
        rates = {key: getattr(layer, key).expand(len(anchor)) for key in ("live_rate", "open_rate")}
        around[name] = replace(layer, lower=anchor - reach, upper=anchor + reach, anchor=anchor, slopes=slopes, **rates)
    return around


def relaxed_lower(graph: NetworkGraph, region: Region, c: Tensor, layers: Layers, steps: int) -> Tensor:
    """Lower bounds of ``C f`` over a region by SDP-CROWN's relaxation, ``(batch, specs)``.

    Descent on the slopes of all rows at once, with multipliers solved for at every step.

    Args:
        layers: of `sdp_crown_layers`.
        steps: of gradient descent.
    """
    rows = c.reshape(*c.shape[:2], *graph[graph.output].shape)
    at = torch.einsum("bso,bo->bs", c, graph.values(region.centre)[graph.output].flatten(1))
    deviation = Deviation(graph, layers, region)
    best, start = deviation.best_rule(graph.output, -rows)
    return at - (torch.minimum(best, _descend(deviation, -rows, start, steps)) if start else best)


def _descend(deviation: Deviation, rows: Tensor, start: dict[str, Tensor], steps: int) -> Tensor:
    """Every iterate is a valid bound, so the smallest is kept."""
    output = deviation.graph.output
    slopes = {name: slope.detach().clone().requires_grad_() for name, slope in start.items()}
    ranges = {}
    for name in slopes:
        neurons, found = deviation.open[name], deviation.layers[name].slopes
        ranges[name] = [taken(neurons, t).detach() for t in (found.low, found.high)]
    optimizer = torch.optim.Adam(list(slopes.values()), lr=_LEARNING_RATE)
    best: Tensor | None = None
    with torch.enable_grad():
        for _ in range(steps):
            value, _ = deviation.evaluate(output, rows.detach(), slopes)
            best = value.detach() if best is None else torch.minimum(best, value.detach())
            optimizer.zero_grad()
            value.sum().backward(inputs=list(slopes.values()))
            optimizer.step()
            with torch.no_grad():
                for name, slope in slopes.items():
                    slope.copy_(torch.minimum(torch.maximum(slope, ranges[name][0]), ranges[name][1]))
    final = deviation.evaluate(output, rows, slopes)[0].detach()
    return final if best is None else torch.minimum(best, final)
