"""The region that branching starts from, bounded once more closely than other methods need it."""

from __future__ import annotations

from dataclasses import replace

import torch

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.deviation import Deviation
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.limit import is_late
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import propagate
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import positive_slack
from lirpa_lip.regions.region import Region


def root_layers(graph: NetworkGraph, region: Region, config: LocalLipConfig, norm: NormBudget, refine: int) -> Layers:
    """Layers of the whole region, with the intervals of small layers descended on as output rows are."""
    config = replace(config, tighten=-1)
    layers = propagate(graph, region, config, norm)
    prior = {layer.parent: (layer.lower, layer.upper) for layer in layers.values()}
    deviation = Deviation(graph, layers, region)
    refined = False
    for layer in list(layers.values())[1:]:
        low, high = layer.lower.flatten(1), layer.upper.flatten(1)
        open_ = ((layer.slopes.radius.flatten(1) > 0)[0]).nonzero().squeeze(1)
        before = sum(layers[n].anchor[0].numel() for n in graph.ancestors(layer.parent) if n in layers)
        if len(open_) == 0 or 2 * len(open_) * before > refine:
            continue
        if is_late():
            break
        refined = True
        unit = torch.zeros(1, len(open_), low.shape[1], dtype=graph.dtype, device=graph.device)
        unit[0, torch.arange(len(open_)), open_] = 1.0
        unit = unit.reshape(1, len(open_), *layer.anchor.shape[1:])
        steps = config.optimize or 30
        at = layer.anchor.flatten(1)[:, open_]
        below = at - deviation.upper(layer.parent, -unit, steps)
        above = at + deviation.upper(layer.parent, unit, steps)
        low, high = low.clone(), high.clone()
        slack = positive_slack(8, graph.dtype)
        low[:, open_] = torch.maximum(low[:, open_], below - slack * (at.abs() + below.abs()))
        high[:, open_] = torch.minimum(high[:, open_], above + slack * (at.abs() + above.abs()))
        prior[layer.parent] = low.reshape(layer.lower.shape), high.reshape(layer.upper.shape)
    # what the first pass has tightened is among the bounds given to the second
    return propagate(graph, region, replace(config, tighten=0), norm, prior) if refined and not is_late() else layers
