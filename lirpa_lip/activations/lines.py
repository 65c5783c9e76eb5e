"""Sound lines below and above any elementwise activation on an interval, from nothing but its trait.

The interval [l, u] is cut at a few points. On each piece the slopes of f lie in a known range, which bounds f between
its values at the ends; so for *any* slope s the offsets

    min over [l, u] of f(z) − s z,        max over [l, u] of f(z) − s z

have valid bounds: exact for piecewise linear functions, of second order in the length of a piece for smooth ones.
Every candidate slope is therefore sound, and choosing among them only decides how tight a line is. Candidates are
the chords between the cuts, which contain the edges of the convex hull of a piecewise linear function.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, Number
from lirpa_lip.activations.curved import Curved, Step
from lirpa_lip.activations.piecewise_linear import PiecewiseLinear
from lirpa_lip.activations.planes import Plane, Relaxation, Relaxations, ratio, where
from lirpa_lip.activations.smooth import Smooth

#: Pieces of equal length a smooth activation's interval is cut into.
_PIECES = 4
#: Where "at the lower end" and "at the upper end" look: inside, so that of lines equal at the end the steeper wins.
_INSIDE = 1 / 64
#: Beyond all pre-activations of a network that works.
_FAR = 1e30


def relaxations(activation: Activation, lower: Tensor, upper: Tensor) -> Relaxations:
    """Lines below and above ``f`` on ``[lower, upper]``: tightest at the lower end, in the middle, at the upper end.

    An interval that is not finite gets constant lines, which are infinite where ``f`` is unbounded on it.
    """
    if isinstance(activation, (Curved, Step)):
        return activation.relaxations(lower, upper)
    finite = torch.isfinite(lower) & torch.isfinite(upper)
    low, high = torch.where(finite, lower, 0.0), torch.where(finite, upper, 0.0)
    points = _cuts(activation, low, high)
    values = [activation.value(p) for p in points]
    slopes = None if isinstance(activation, PiecewiseLinear) else _piece_slopes(activation, points)
    candidates = _chords(points, values, activation, low)
    places = [torch.lerp(low, high, t) for t in (_INSIDE, 0.5, 1 - _INSIDE)]
    below = _tightest(candidates, points, values, slopes, places)
    mirrored = None if slopes is None else [(-b, -a) for a, b in slopes]
    above = _tightest([-s for s in candidates], points, [-v for v in values], mirrored, places)
    level_low, level_high = _levels(activation, lower, upper, finite)
    zero = torch.zeros_like(low)
    return Relaxations(
        *(
            Relaxation(
                where(finite, b, Plane((zero,), level_low)),
                where(finite, Plane((-a.slopes[0],), -a.bias), Plane((zero,), level_high)),
            )
            for b, a in zip(below, above, strict=True)
        )
    )


def blend_three(first: Plane, middle: Plane, last: Plane, mix: Tensor) -> Plane:
    """``first`` at mix 0, ``middle`` at ½, ``last`` at 1, and convex combinations of neighbours between: all sound."""
    to_first, to_last = (1 - 2 * mix).clamp(min=0), (2 * mix - 1).clamp(min=0)
    to_middle = 1 - to_first - to_last
    weighed = ((first, to_first), (middle, to_middle), (last, to_last))
    slope = sum(w * p.slopes[0] for p, w in weighed)
    bias = sum(torch.where(w > 0, w * p.bias, 0.0) for p, w in weighed)
    return Plane((slope,), bias)


def _levels(activation: Activation, lower: Tensor, upper: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    if bool(finite.all()):
        return torch.zeros_like(lower), torch.zeros_like(lower)
    # an infinite end is looked at from far out, because infinity times a slope of zero is no number
    low, high = activation.interval(lower.clamp(-_FAR, _FAR), upper.clamp(-_FAR, _FAR))
    high = torch.where(high < _FAR / 1e6, high, torch.inf)
    return torch.where(low > -_FAR / 1e6, low, -torch.inf), high


def _cuts(activation: Activation, lower: Tensor, upper: Tensor) -> list[Tensor]:
    """Ascending points from ``lower`` to ``upper`` that hold every kink between them."""

    def clamp(point: Number) -> Tensor:
        full = torch.as_tensor(point, dtype=lower.dtype, device=lower.device).expand_as(lower)
        return torch.minimum(torch.maximum(full, lower), upper)

    if isinstance(activation, PiecewiseLinear):
        return [lower, *(clamp(k) for k in activation.knots), upper]
    inner = [torch.lerp(lower, upper, i / _PIECES) for i in range(1, _PIECES)]
    kinks = [clamp(point) for point, *_ in activation.jumps] if isinstance(activation, Smooth) else []
    if not kinks:
        return [lower, *inner, upper]
    return [lower, *torch.stack([*inner, *kinks]).sort(dim=0).values, upper]


def _piece_slopes(activation: Activation, points: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    ranges = [activation.slope_range(a, b) for a, b in itertools.pairwise(points)]
    return [(r.low, r.high) for r in ranges]


def _chords(points: Sequence[Tensor], values: Sequence[Tensor], activation: Activation, lower: Tensor) -> list[Tensor]:
    """Slopes from either end to each cut, and between neighbours; at a single point the slope there."""
    last = len(points) - 1
    pairs = {(0, i) for i in range(1, last + 1)} | {(i, last) for i in range(last)} | {(i, i + 1) for i in range(last)}
    here = activation.slope_range(lower, lower).centre
    found = []
    for i, j in sorted(pairs):
        run = points[j] - points[i]
        found.append(torch.where(run > 0, ratio(values[j] - values[i], run, at_zero=0.0), here))
    return found


def _tightest(
    candidates: Sequence[Tensor],
    points: Sequence[Tensor],
    values: Sequence[Tensor],
    slopes: Sequence[tuple[Tensor, Tensor]] | None,
    places: Sequence[Tensor],
) -> list[Plane]:
    """Of the lines below with the candidates' slopes, the highest at each place."""
    best: list[tuple[Tensor, ...]] = []
    for slope in candidates:
        offset = _least(slope, points, values, slopes)
        found = [((slope * place + offset).detach(), slope, offset) for place in places]
        best = [_higher(new, old) for new, old in zip(found, best)] if best else found
    return [Plane((slope,), offset) for _, slope, offset in best]


def _higher(new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(new[0] > old[0], a, b) for a, b in zip(new, old))


def _least(
    slope: Tensor, points: Sequence[Tensor], values: Sequence[Tensor], slopes: Sequence[tuple[Tensor, Tensor]] | None
) -> Tensor:
    """Lower bound of ``f(z) − slope z`` over all pieces, less what rounding may have added."""
    gaps = [v - slope * p for v, p in zip(values, points, strict=True)]
    least = torch.stack(gaps).amin(0)
    if slopes is not None:
        for i, (low, high) in enumerate(slopes):
            length = points[i + 1] - points[i]
            least = torch.minimum(least, _dip(gaps[i], gaps[i + 1], length, low - slope, high - slope))
    widest = torch.maximum(points[0].abs(), points[-1].abs())
    size = torch.stack([v.abs() for v in values]).amax(0) + slope.abs() * widest
    moves = (slope != 0) if slopes is None else torch.ones_like(slope, dtype=torch.bool)
    return least - torch.where(moves, 4 * torch.finfo(slope.dtype).eps * size, 0.0).detach()


def _dip(left: Tensor, right: Tensor, length: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Least value between two ends of a function whose slopes lie in [low, high]: where its two lower lines cross."""
    crosses = (low < 0) & (high > 0)
    at = ratio(left - right + high * length, torch.where(crosses, high - low, 1.0), at_zero=0.0)
    at = torch.minimum(at.clamp(min=0), length)
    inside = torch.minimum(torch.minimum(left + low * at, right - high * (length - at)), torch.minimum(left, right))
    return torch.where(crosses, inside, torch.minimum(left, right))
