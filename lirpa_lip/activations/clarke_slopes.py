"""Clarke slopes of activations on closed, possibly split intervals, and lines above and below them.

A *split* restricts a pre-activation to a closed half line that ends at a split point. On the half line of a kink at t
the slope is that of its own side alone: a point with z = t lies in both halves, so that the two children together hold
the whole Clarke set there, and neither needs both slopes. The ends of *computed* intervals are different: nothing is
on the other side of them, so at a kink which is such an end both slopes count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, Number, SlopeRange
from lirpa_lip.activations.piecewise_linear import PiecewiseLinear

#: Cells a smooth activation's interval is cut into for its lines.
_CELLS = 12


def clarke_slopes(activation: Activation, lower: Tensor, upper: Tensor, after: Tensor, before: Tensor) -> SlopeRange:
    """Range of Clarke slopes on ``[lower, upper]``, itself inside ``[after, before]``.

    Args:
        lower, upper: bounds of the pre-activation, ``(batch, *shape)``.
        after, before: split points, ``∓inf`` where there is no split.
    """
    if not isinstance(activation, PiecewiseLinear):
        return activation.slope_range(lower, upper, closed=True)
    knots, slopes = _pieces(activation, lower)
    low, high = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
    for i, slope in enumerate(slopes):
        here = torch.ones_like(lower, dtype=torch.bool)
        if i > 0:
            here &= (knots[i - 1] <= upper) & (knots[i - 1] < before)
        if i < len(knots):
            here &= (knots[i] >= lower) & (knots[i] > after)
        if 0 < i < len(knots):
            here &= knots[i - 1] < knots[i]
        low = torch.where(here, torch.minimum(low, slope), low)
        high = torch.where(here, torch.maximum(high, slope), high)
    # an empty interval belongs to an empty domain; any finite slopes will do
    gone = low > high
    return SlopeRange(low.masked_fill(gone, 0.0), high.masked_fill(gone, 0.0))


def split_point(activation: Activation, lower: Tensor, upper: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """Where to split each neuron: the kink nearest the middle, or a smooth activation's midpoint; NaN for nowhere."""
    middle = (lower + upper) / 2
    if not isinstance(activation, PiecewiseLinear):
        return torch.where(upper > lower, middle, torch.nan)
    best, distance = torch.full_like(lower, torch.nan), torch.full_like(lower, torch.inf)
    for knot in _pieces(activation, lower)[0]:
        inside = (knot >= lower) & (knot <= upper) & (knot > after) & (knot < before)
        away = torch.where(inside, (knot - middle).abs(), torch.inf)
        best, distance = torch.where(away < distance, knot, best), torch.minimum(away, distance)
    return best


def _pieces(activation: PiecewiseLinear, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    def full(value: Number):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().expand_as(like)

    return [full(k) for k in activation.knots], [full(s) for s in activation.slopes]


@dataclass(frozen=True)
class Lines:
    """``low_slope·z + low_offset ≤ f(z) ≤ high_slope·z + high_offset`` on an interval; each ``(batch, *shape)``."""

    low_slope: Tensor
    low_offset: Tensor
    high_slope: Tensor
    high_offset: Tensor


def lines(activation: Activation, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> Lines:
    """The best of three slopes (least, greatest, chord) on each side, by the value in the middle of the interval.

    For an unstable ReLU this is CROWN's relaxation: the chord above, and 0 or z below, whichever encloses less.
    """
    middle, at_middle = (lower + upper) / 2, activation.value((lower + upper) / 2)
    width = upper - lower
    chord = (activation.value(upper) - activation.value(lower)) / torch.where(width > 0, width, 1.0)
    chord = torch.where(width > 0, torch.minimum(torch.maximum(chord, slopes.low), slopes.high), slopes.low)
    best, best_low, best_high = None, width, width
    for slope in (slopes.low, slopes.high, chord):
        low, high = _deviation(activation, slope, middle, lower, upper, slopes)
        size = at_middle.abs() + slope.abs() * middle.abs() + slopes.magnitude * width
        slack = 16 * torch.finfo(lower.dtype).eps * (size + torch.maximum(low.abs(), high.abs()))
        base = at_middle - slope * middle
        below, above = base + low - slack, base + high + slack
        if best is None:
            best, best_low, best_high = Lines(slope, below, slope, above), low, high
            continue
        lift, drop = low > best_low, high < best_high
        best = Lines(
            torch.where(lift, slope, best.low_slope),
            torch.where(lift, below, best.low_offset),
            torch.where(drop, slope, best.high_slope),
            torch.where(drop, above, best.high_offset),
        )
        best_low, best_high = torch.maximum(best_low, low), torch.minimum(best_high, high)
    assert best is not None
    return best


def _deviation(activation: Activation, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange):
    """Range of ``f(z) − f(anchor) − slope·(z − anchor)`` on the interval."""
    if isinstance(activation, PiecewiseLinear):
        return activation.deviation_range(slope, anchor, lower, upper, slopes)
    low, high = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
    step = (upper - lower) / _CELLS
    offset = activation.value(anchor) - slope * anchor
    left, at_left = lower, activation.value(lower) - slope * lower - offset
    for i in range(_CELLS):
        right = upper if i == _CELLS - 1 else lower + (i + 1) * step
        at_right = activation.value(right) - slope * right - offset
        cell = activation.slope_range(left, right, closed=True)
        rise, fall = cell.high - slope, cell.low - slope
        high = torch.maximum(high, _peak(at_left, at_right, rise, fall, right - left))
        low = torch.minimum(low, -_peak(-at_left, -at_right, -fall, -rise, right - left))
        left, at_left = right, at_right
    return low, high


def _peak(at_left: Tensor, at_right: Tensor, rise: Tensor, fall: Tensor, width: Tensor) -> Tensor:
    """Largest value on a cell of a function whose derivative lies in ``[fall, rise]``, from its values at the ends."""
    span = rise - fall
    turn = (at_right - at_left - fall * width) / torch.where(span > 0, span, 1.0)
    turn = torch.minimum(turn.clamp(min=0), width)
    inner = torch.where((rise > 0) & (fall < 0), at_left + rise * turn, at_left)
    return torch.maximum(torch.maximum(at_left, at_right), inner)
