"""``method="clarke-jacobian"`` and its kin: from a wrapped model and a region to Lipschitz constants of every norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.autolirpa.calls import double_input, in_float64
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.jacobian.constants import METHODS, check_norm
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.local.bounds import Prepared, compared, outward
from lirpa_lip.local.rows import check_specification
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.intervals import lirpa_intervals
from lirpa_lip.regions.region import Region
from lirpa_lip.results import DETERMINISTIC, LipschitzResult
from lirpa_lip.search.constants import clarke_lipschitz

JACOBIAN_METHODS = METHODS


def jacobian_constants_of(
    bounded: Any, x: Any, c: Tensor | None, method: str, norm: float, *, options: Mapping
) -> LipschitzResult:
    """Constants of the rows of ``C f``, or of f for ``C=None``, over the closed region of ``x``.

    Raises:
        UnknownMethodError, UnsupportedNormError, ShapeError, ConfigError, NonFiniteError: as named.
    """
    settings, norm = ClarkeOptions.from_keywords(options), check_norm(norm)
    graph, inputs, dtype = prepare_region(bounded, x)
    rows = check_specification(c, len(inputs), graph)
    seed = rows.reshape(*rows.shape[:2], *graph[graph.output].shape).detach()
    prior = alpha_crown_intervals(bounded, x, graph, inputs) if settings.intermediate == "alpha-crown" else {}
    upper, lower, details = clarke_lipschitz(
        graph, inputs, seed, c is None, method, norm=norm, options=settings, prior_intervals=prior
    )
    slopes = details.pop("slopes").values()
    stable, eliminated = (
        sum((getattr(s, kind).flatten(1).sum(1) for s in slopes), torch.zeros(len(inputs), dtype=torch.long))
        for kind in ("stable", "eliminated")
    )
    return LipschitzResult(
        upper=outward(upper, upper, dtype)[1],
        lower=outward(lower, lower, dtype)[0].clamp(min=0),
        worth=DETERMINISTIC,
        stable=stable,
        eliminated=eliminated,
        neurons=sum(s.low[0].numel() for s in slopes),
        details=details,
    )


def prepare_region(bounded: Any, x: Any) -> Prepared:
    """The graph in float64, the closed region of ``x``, a ball or a box, and the model's own precision."""
    config = replace(LocalLipConfig.from_options(bounded.bound_opts), precision="float64")
    found = compared(bounded, x, config, norms=(math.inf, 2), what="the region of a Jacobian bound")
    return found._replace(region=found.region.detach())


def alpha_crown_intervals(bounded: Any, x: Any, graph: NetworkGraph, inputs: Region) -> dict:
    """Pre-activation bounds that auto_LiRPA's optimised CROWN leaves on its nodes, in float64 and less its rounding."""
    # auto_LiRPA's ball is not cut by the box of possible inputs
    box = (inputs if inputs.radius is None else Region(inputs.centre, inputs.radius)).interval()
    with in_float64(bounded):
        bounded.compute_bounds(x=double_input(x), method="alpha-crown")
        found = lirpa_intervals(bounded, graph, box)
    return {name: tuple(t.detach() for t in pair) for name, pair in found.items()}
