"""Splits of activations at their kinks: how a part of a region is told, and which neuron is split next.

Where a bound of a row is λ-optimal, what it exceeds the row's value at a point x by is a sum over neurons: how much
each neuron's relaxed value exceeds its true one at x (`lirpa_lip.local.part_multipliers.Descent.gaps`). A neuron with a
kink inside its interval is scored by that, x being the point which the bound speaks for, and by what its relaxation
can exceed it by at most, ``|c| · |s_right − s_left| · (u − k)(k − l)/(u − l)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lirpa_lip.local.layers import Layer
from lirpa_lip.local.part_multipliers import Cuts, Descent


@dataclass(frozen=True)
class Split:
    """A neuron and a kink: activation, flat index, pre-activation."""

    name: str
    index: int
    point: float


@dataclass(frozen=True)
class HalfSpace:
    """``z >= point`` where ``above``, else ``z <= point``; both sides of a split are closed."""

    split: Split
    above: bool


def cut(whole: Mapping[str, Cuts], parts: Sequence[Sequence[HalfSpace]]) -> dict[str, Cuts]:
    """Intervals of every part: those of the region, ``(1, neurons)``, cut by its half-spaces."""
    cuts = {name: Cuts(*(t.repeat(len(parts), 1) for t in (c.lower, c.upper))) for name, c in whole.items()}
    for k, half_spaces in enumerate(parts):
        for space in half_spaces:
            name, i, point = space.split.name, space.split.index, space.split.point
            ends = cuts[name].lower if space.above else cuts[name].upper
            ends[k, i] = max(float(ends[k, i]), point) if space.above else min(float(ends[k, i]), point)
    return cuts


def choices(
    layers: Mapping[str, Layer], cuts: Mapping[str, Cuts], found: Descent, count: int
) -> list[tuple[Split, ...]]:
    """The best splits of each part, best first; none where every neuron is linear on it."""
    scores, points, names = [], [], []
    for name, strength in found.strength.items():
        layer = layers[name]
        if not layer.activation.piecewise_linear:
            continue
        shape, parts = layer.anchor.shape[1:], len(strength)
        low, high = (t.reshape(parts, *shape) for t in (cuts[name].lower, cuts[name].upper))
        free = torch.full_like(low, torch.inf)
        point = layer.activation.split_point(low, high, -free, free).flatten(1)
        lower, upper = (t.flatten(1) for t in (low, high))
        inside = (point > lower) & (point < upper)
        run = torch.where(inside, upper - lower, 1.0)
        jump = layer.activation.slope_range(low, high)
        most = strength * (jump.high - jump.low).flatten(1) * (upper - point) * (point - lower) / run
        scores.append(torch.where(inside, found.gaps[name] + _SHARE * most, -1.0))
        points.append(point)
        names += [(name, i) for i in range(point.shape[1])]
    if not scores:
        return [()] * len(found.upper)
    score, point = torch.cat(scores, 1), torch.cat(points, 1)
    best = score.topk(min(count, score.shape[1]), dim=1)
    return [
        tuple(Split(names[i][0], names[i][1], float(point[k, i])) for value, i in zip(values, indices) if value >= 0)
        for k, (values, indices) in enumerate(zip(best.values.tolist(), best.indices.tolist()))
    ]


#: Of what a relaxation can exceed its neuron by, beside what it does at one point.
_SHARE = 0.02
