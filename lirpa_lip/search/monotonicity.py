"""Monotone inputs: which features a network is certainly increasing, or decreasing, in over a region.

A network is non-decreasing in feature j over a box if ``∂f/∂x_j ≥ 0`` for every Clarke Jacobian there: along a
segment in direction j the difference of values is an integral of such slopes. Bounds of one Jacobian entry decide,
and where they have both signs, branch and bound on that entry alone.

Source: Shi et al., NeurIPS 2022, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.jacobian.backward import backward_bounds
from lirpa_lip.jacobian.forward import Forward, Interval, forward_bounds
from lirpa_lip.jacobian.moving import moving_slopes
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.jacobian.tangents import Backward, push_tangent
from lirpa_lip.local.point_jacobians import jacobians_at
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region
from lirpa_lip.search.branch_and_bound import Search, start
from lirpa_lip.search.domains import Evaluator
from lirpa_lip.search.objectives import Entry, Problem

INCREASING, DECREASING, UNKNOWN, NEITHER, CONSTANT = "increasing", "decreasing", "unknown", "neither", "constant"


@dataclass(frozen=True)
class Monotonicity:
    """Slopes of features over a region.

    Attributes:
        features: flat input indices.
        lower, upper: certified bounds of every Clarke slope, ``(batch, rows, features)``.
        seen_low, seen_high: least and largest slope found at points of the region.
    """

    features: tuple[int, ...]
    lower: Tensor
    upper: Tensor
    seen_low: Tensor
    seen_high: Tensor

    def verdict(self, sample: int, row: int, position: int) -> str:
        """``increasing`` and ``decreasing`` (not strictly), ``constant``, ``neither`` (slopes of both signs were
        seen), or ``unknown``."""
        at = sample, row, position
        up, down = bool(self.lower[at] >= 0), bool(self.upper[at] <= 0)
        if up and down:
            return CONSTANT
        if up or down:
            return INCREASING if up else DECREASING
        return NEITHER if bool((self.seen_low[at] < 0) & (self.seen_high[at] > 0)) else UNKNOWN

    def verdicts(self) -> list[list[list[str]]]:
        """All of them, ``[sample][row][position]``."""
        batch, rows, count = self.lower.shape
        return [[[self.verdict(b, r, k) for k in range(count)] for r in range(rows)] for b in range(batch)]


@torch.no_grad()
def monotone_features(
    graph: NetworkGraph,
    inputs: Region,
    seed: Tensor,
    features: Sequence[int] | None = None,
    options: ClarkeOptions | None = None,
    *,
    prior_intervals: Mapping[str, Interval] | None = None,
) -> Monotonicity:
    """Bounds of ``∂(C f)/∂x_j`` over a closed region for each feature j.

    Args:
        graph: the network, in float64.
        seed: rows of C, ``(batch, rows, *output shape)``.
        features: flat input indices; ``None`` for all.
        options: with a ``time_limit``, branch and bound on the entries that are still open, for so long in all.

    Raises:
        ShapeError: no such feature.
    """
    options = options or ClarkeOptions()
    count = graph[graph.input].shape.numel()
    features = tuple(range(count)) if features is None else tuple(int(f) for f in features)
    for feature in features:
        if not 0 <= feature < count:
            raise ShapeError(f"feature {feature} does not exist; the input has features 0 … {count - 1}.")
    forward = forward_bounds(graph, inputs, prior_intervals=prior_intervals, crown=options.intermediate != "ibp")
    result = backward_bounds(graph, forward.slopes, seed, moving=moving_slopes(graph, inputs, forward))
    lower, upper = _entries(graph, result, features)
    seen_low, seen_high = _seen(graph, inputs, seed, features, options.samples)
    if options.time_limit > 0:
        _search(graph, inputs, seed, features, options, forward, result, (lower, upper), (seen_low, seen_high))
    return Monotonicity(features, lower, upper, seen_low, seen_high)


def _entries(graph: NetworkGraph, result: Backward, features: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Entries of the chosen features, from intervals and from a push of each sign."""
    low, high = (t.flatten(2)[:, :, list(features)] for t in result.cotangents[graph.input])
    shape = result.cotangents[graph.input][0].shape
    unit = torch.zeros(len(features), shape[2:].numel(), dtype=low.dtype, device=low.device)
    unit[torch.arange(len(features)), list(features)] = 1
    tangents = torch.cat([unit, -unit]).reshape(1, 1, -1, *shape[2:]).expand(*shape[:2], -1, *shape[2:])
    up, down = push_tangent(graph, graph.input, tangents, result).chunk(2, dim=2)
    return torch.maximum(low, -down).clone(), torch.minimum(high, up).clone()


def _seen(
    graph: NetworkGraph, inputs: Region, seed: Tensor, features: tuple[int, ...], samples: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device=seed.device).manual_seed(0)
    x = torch.cat([inputs.project(inputs.centre.unsqueeze(1)), inputs.sample(max(1, samples - 1), generator)], dim=1)
    rows, unknown = jacobians_at(graph, x, seed)
    found, good = rows[..., list(features)], torch.isfinite(unknown).unsqueeze(3)
    return torch.where(good, found, math.inf).amin(2), torch.where(good, found, -math.inf).amax(2)


def _search(
    graph: NetworkGraph,
    inputs: Region,
    seed: Tensor,
    features: tuple[int, ...],
    options: ClarkeOptions,
    forward: Forward,
    result: Backward,
    bounds: tuple[Tensor, Tensor],
    seen: tuple[Tensor, Tensor],
) -> None:
    """Branch and bound on every end that is still open; tightens ``bounds`` and ``seen`` in place."""
    lower, upper = bounds
    seen_low, seen_high = seen
    problems: list[Problem] = []
    places = []
    for b, r, k in ((lower < 0) & (upper > 0)).nonzero().tolist():
        for sign in (1.0, -1.0):
            # ∂f/∂x_j ≤ 0 is not to be shown where a positive slope was seen, and the other way round
            if (seen_high if sign > 0 else -seen_low)[b, r, k] <= 0:
                problems.append(Problem(b, (r,), len(problems), features[k], sign))
                places.append((b, r, k))
    if not problems:
        return
    evaluator = Evaluator(graph, inputs, seed, problems, Entry(), options.intermediate != "ibp", "gap")
    first = [float(upper[p]) if q.sign > 0 else -float(lower[p]) for p, q in zip(places, problems)]
    best = [float(seen_high[p]) if q.sign > 0 else -float(seen_low[p]) for p, q in zip(places, problems)]
    cotangents = dict(result.cotangents)
    state = start(evaluator, forward, cotangents, first, best, fingerprint="monotonicity")
    search = Search(evaluator, len(problems), replace(options, heuristic="gap", progress=None), state)
    last = search.progress(search.run().waiting)
    for place, problem, high, low in zip(places, problems, last.upper.tolist(), last.lower.tolist()):
        if problem.sign > 0:
            upper[place], seen_high[place] = min(float(upper[place]), high), max(float(seen_high[place]), low)
        else:
            lower[place], seen_low[place] = max(float(lower[place]), -high), min(float(seen_low[place]), -low)
