"""One pass from the input to the output: pre-activation bounds, slopes and rates of every activation in turn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.graph import NetworkGraph, Node
from lirpa_lip.intermediate import Interval, check_interval, intersect, node_interval
from lirpa_lip.region import Region

from .composed import composed_rate
from .deviation import Deviation
from .layers import Layer, Layers
from .oracle import Norm, norm_below
from .product import local_ball, product_plan, product_rate

#: Most elements of one batch of composed rows (rows × widest layer): about what caches hold.
_ROW_ELEMENTS = 1 << 20


def planned_norms(graph: NetworkGraph, config: LocalLipConfig) -> int:
    """Norms one sweep takes, at most."""
    count = 0
    for node in graph.activations:
        count += product_plan(graph, node) + (2 if config.bound != "product" else 0)
    return count


def sweep(
    graph: NetworkGraph,
    region: Region,
    config: LocalLipConfig,
    norm: Norm,
    given: Mapping[str, Interval] | None = None,
    anchored: bool | None = None,
) -> Layers:
    """Bounds, slopes and rates of every activation, in topological order.

    Args:
        given: valid bounds of some pre-activations from elsewhere (CROWN), intersected with those found here.
        anchored: override of ``config.anchored``.
    """
    anchored = config.anchored if anchored is None else anchored
    given = given or {}
    values = graph.values(region.centre)
    layers: Layers = {}
    intervals: dict[str, Interval] = {graph.input: region.interval()}
    wanted = {node.parents[0] for node in graph.activations}
    tightened = 0
    for node in graph:
        if node.is_input:
            continue
        if node.activation is None:
            interval = node_interval(node, intervals)
            if node.name in given:
                interval = intersect(interval, given[node.name])
            if node.name in wanted:
                interval = _narrow(graph, node, interval, values[node.name], layers, region, config)
                check_interval(node, interval)
                # a ball seen through a linear map is bounded exactly as it is
                exact = not layers and region.low is None and config.local_ball
                if (tightened < config.tighten or config.tighten == -1) and not exact:
                    interval = _tighten(graph, node, interval, values[node.name], layers, region)
                tightened += 1
            intervals[node.name] = interval
        else:
            layer = _layer(graph, node, intervals[node.parents[0]], values, layers, config, norm, anchored)
            layers[node.name] = layer
            intervals[node.name] = node_interval(node, {layer.parent: (layer.lower, layer.upper)})
    return layers


def _narrow(graph, node: Node, interval: Interval, value: Tensor, layers: Layers, region: Region, config) -> Interval:
    if not config.local_ball:
        return interval
    reach = local_ball(graph, node.name, layers, region.eps)
    return intersect(interval, (value - reach, value + reach))


def _layer(graph, node: Node, interval: Interval, values, layers: Layers, config, norm: Norm, anchored) -> Layer:
    parent, activation = node.parents[0], node.activation
    assert activation is not None
    anchor = values[parent]
    lower, upper = torch.minimum(interval[0], anchor), torch.maximum(interval[1], anchor)
    if anchored:
        slopes = activation.secant_range(anchor, lower, upper)
    else:
        slopes = activation.slope_range(lower, upper)
    magnitude = _magnitude(graph, node, slopes.magnitude, layers, config, norm)
    spread = magnitude
    if config.bound != "product":
        # every diagonal contraction of S^½ z moves no faster, R^½ z among them
        spread = torch.minimum(magnitude, composed_rate(graph, parent, slopes.radius, layers, norm))
    return Layer(node.name, parent, activation, lower, upper, anchor, slopes, magnitude, spread)


def _magnitude(graph, node: Node, mask: Tensor, layers: Layers, config, norm: Norm) -> Tensor:
    """``Lip(S^½ z)``; of two bounds the second is not taken where it cannot be smaller, or is the same norm."""
    if config.bound == "product":
        return product_rate(graph, node, mask, layers, norm)
    first = not any(name in layers for name in graph.ancestors(node.parents[0]))
    if config.bound == "auto" and first and node.isometry_of is None:
        return product_rate(graph, node, mask, layers, norm)
    composed = composed_rate(graph, node.parents[0], mask, layers, norm)
    if config.bound == "composed":
        return composed
    # estimates keep warm starts by the order of the norms, which then must not depend on the data
    if not config.is_estimate and bool((composed <= product_rate(graph, node, mask, layers, norm_below)).all()):
        return composed
    return torch.minimum(composed, product_rate(graph, node, mask, layers, norm))


def _tighten(graph, node: Node, interval: Interval, value: Tensor, layers: Layers, region: Region) -> Interval:
    """Bounds of the neurons whose sign is open, again, by composed rows around the centre."""
    lower, upper = (t.flatten(1).clone() for t in interval)
    open_ = (lower < 0) & (upper > 0)
    most = int(open_.sum(1).max())
    if most == 0:
        return interval
    index = open_.to(torch.int8).topk(most, dim=1).indices
    batch, neurons = lower.shape
    chunk = max(1, _ROW_ELEMENTS // (batch * max(n.shape.numel() for n in graph)))
    deviation = Deviation(graph, layers, region)
    lows, highs = [], []
    for part in index.split(chunk, dim=1):
        rows = torch.zeros(batch, part.shape[1], neurons, dtype=graph.dtype, device=graph.device)
        rows.scatter_(2, part.unsqueeze(2), 1.0)
        rows = rows.reshape(batch, -1, *node.shape)
        lows.append(-deviation.upper(node.name, -rows))
        highs.append(deviation.upper(node.name, rows))
    at = value.flatten(1).gather(1, index)
    low, high = at + torch.cat(lows, 1), at + torch.cat(highs, 1)
    lower = lower.scatter(1, index, torch.maximum(lower.gather(1, index), low))
    upper = upper.scatter(1, index, torch.minimum(upper.gather(1, index), high))
    return intersect(interval, (lower.reshape(interval[0].shape), upper.reshape(interval[1].shape)))
