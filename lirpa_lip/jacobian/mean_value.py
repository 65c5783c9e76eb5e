"""Output bounds through the Jacobian: the mean-value form, a verifier to stand beside CROWN.

``f(x) − f(x₀) = J (x − x₀)`` for an average J of Clarke Jacobians on the segment between them, whose entries
therefore lie within the bounds over the whole (convex) region. On a box every coordinate takes its worst corner; on a
ball the row's ℓ₂ constant times the radius is used as well, and the better of the two kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.jacobian.constants import jacobian_constants
from lirpa_lip.jacobian.forward import Interval, forward_bounds
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import absolute_sizes, total_gamma
from lirpa_lip.regions.region import Region


@torch.no_grad()
def mean_value_bounds(
    graph: NetworkGraph,
    inputs: Region,
    seed: Tensor,
    method: str = "clarke-jacobian",
    options: ClarkeOptions | None = None,
    *,
    prior_intervals: Mapping[str, Interval] | None = None,
) -> tuple[Tensor, Tensor]:
    """Bounds of ``C f(x)`` over the region, ``(batch, rows)`` each.

    Args:
        seed: rows of C, ``(batch, rows, *output shape)``.
        method: which bound of the Jacobian: ``"clarke-jacobian"``, ``"recurjac"`` or ``"fastlip"``.
    """
    options = options or ClarkeOptions()
    forward = forward_bounds(graph, inputs, prior_intervals=prior_intervals, crown=options.intermediate != "ibp")
    norm = math.inf if inputs.radius is None else 2
    found = jacobian_constants(graph, inputs, forward, seed, method=method, norm=norm, options=options)[method]
    if found.backward is None:
        raise ConfigError(f"method={method!r} bounds no Jacobian entries, which the mean-value form needs.")
    low, high = (t.flatten(2) for t in found.backward.cotangents[graph.input])
    centre = inputs.centre
    value = (graph.values(centre)[graph.output].flatten(1).unsqueeze(1) * seed.flatten(2)).sum(-1)
    down, up = ((end - centre).flatten(1).unsqueeze(1) for end in inputs.interval())
    most = torch.maximum(torch.maximum(low * down, low * up), torch.maximum(high * down, high * up)).sum(-1)
    least = torch.minimum(torch.minimum(low * down, low * up), torch.minimum(high * down, high * up)).sum(-1)
    if inputs.radius is not None:
        reach = found.rows * inputs.radius.unsqueeze(1)
        most, least = torch.minimum(most, reach), torch.maximum(least, -reach)
    size = absolute_sizes(graph, inputs.size)[graph.output].flatten(1).unsqueeze(1)
    slack = total_gamma(graph) * (seed.flatten(2).abs() * size).sum(-1) + 1e-12 * (most - least)
    return value + least - slack, value + most + slack
