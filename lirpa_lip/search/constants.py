"""Local Lipschitz constants by any Jacobian method, with branch and bound where there is time for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lirpa_lip.errors import UnknownMethodError
from lirpa_lip.jacobian.constants import METHODS, check_norm, jacobian_constants
from lirpa_lip.jacobian.forward import Interval, forward_bounds
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.local.lower import Effort, lower_bounds
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region


class ClarkeConstants(NamedTuple):
    """Upper and lower bounds; ``details["bounds"]`` holds the upper bounds of the weaker methods too."""

    upper: Tensor
    lower: Tensor
    details: dict


@torch.no_grad()
def clarke_lipschitz(
    graph: NetworkGraph,
    inputs: Region,
    seed: Tensor,
    whole: bool,
    method: str = "clarke-jacobian",
    *,
    norm: float = math.inf,
    options: ClarkeOptions | None = None,
    prior_intervals: Mapping[str, Interval] | None = None,
) -> ClarkeConstants:
    """Upper and lower bounds of local Lipschitz constants over a closed region, and details.

    Args:
        graph: the network, in float64.
        seed: rows of C, ``(batch, rows, *output shape)``; the identity for the network's own outputs.
        whole: bound the matrix ``‖·‖_p → ‖·‖_p``, ``(batch,)``, not each row.
        prior_intervals: valid pre-activation bounds from elsewhere.

    Raises:
        UnknownMethodError, UnsupportedNormError, ConfigError: as named.
    """
    if method not in METHODS:
        raise UnknownMethodError(method, METHODS)
    norm, options = check_norm(norm), options or ClarkeOptions()
    forward = forward_bounds(graph, inputs, prior_intervals=prior_intervals, crown=options.intermediate != "ibp")
    found = jacobian_constants(graph, inputs, forward, seed, method=method, norm=norm, options=options)
    effort = Effort(options.samples, options.steps, intervals=forward.intervals)
    lower = lower_bounds(graph, inputs, seed, norm, whole=whole, effort=effort)
    details: dict = {"bounds": {name: (b.whole if whole else b.rows) for name, b in found.items()}}
    upper = details["bounds"][method]
    if method == "clarke-jacobian" and (options.time_limit > 0 or options.resume is not None):
        from lirpa_lip.search.branch_and_bound import BranchAndBound

        search = BranchAndBound(graph, inputs, seed, whole, norm, options=options)
        upper, lower, report = search.run(forward, found[method], upper, lower)
        details.update(report)
    details["entries"] = found[method].entries
    details["slopes"] = forward.slopes
    return ClarkeConstants(upper, lower, details)
