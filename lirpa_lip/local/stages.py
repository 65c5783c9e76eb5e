"""Bounds up to a threshold: a sample goes through passes of rising cost, and leaves at the first that decides its rows.

    product bound, coarse norms  ->  all bounds, coarse norms  ->  the settings themselves

The first pass has one norm of a single map for each layer, the second half of the iterations of the third or fewer.
Every bound that is returned is valid, the smallest that was found; of rows that are decided early it is a coarse one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.local.rows import centre_rows, output_upper
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region

#: Accuracy of norms before the last pass. What it costs a margin is a few per cent of its reach.
_COARSE = 3e-2


def stages_of(config: LocalLipConfig) -> list[LocalLipConfig]:
    """Settings of every pass; the last are those given."""
    cheap = replace(config, optimize=0, tighten=0, norm_tolerance=max(config.norm_tolerance, _COARSE))
    stages = [replace(cheap, bound="product")] if config.bound == "auto" else []
    # deterministic norms are as near as their method gives, whatever was asked for
    coarse = config.certificate != "deterministic" and config.norm_tolerance <= _COARSE / 2
    if coarse or config.optimize or config.tighten:
        stages.append(cheap)
    return [*stages, config]


def planned_in_stages(graph: NetworkGraph, config: LocalLipConfig) -> int:
    """Norms of all passes together, among which δ is divided: a sample may go through every one."""
    return sum(planned_norms(graph, stage) for stage in stages_of(config))


def staged_upper(
    graph: NetworkGraph, region: Region, c: Tensor, config: LocalLipConfig, *, norm: NormBudget, threshold: Tensor
) -> Tensor:
    """Upper bounds of ``C f`` over the region, ``(batch, specs)``, each as near as it takes to be below its threshold.

    Args:
        norm: planned for `planned_in_stages`.
        threshold: ``(batch, specs)``. A row is decided once it is below it; one that is not at the centre never can be.
    """
    reachable = centre_rows(graph, region.centre, c) < threshold
    upper = torch.full(c.shape[:2], torch.inf, dtype=graph.dtype, device=graph.device)
    index = torch.arange(len(c), device=graph.device)
    for stage in stages_of(config):
        part = region if len(index) == len(c) else region.select(index)
        layers = propagate(graph, part, stage, norm.under(stage))
        found = output_upper(graph, part, c[index], layers, stage, threshold=threshold[index])
        upper = upper.index_put((index,), torch.minimum(upper[index], found))
        index = ((upper >= threshold) & reachable).any(1).nonzero().squeeze(1)
        if not len(index):
            break
    norm.under(config)
    return upper
