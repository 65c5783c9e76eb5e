"""One line below and one above an activation on an interval: the relaxation that Jacobian bounds are found through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lirpa_lip.activations.slopes import SlopeRange

#: Cells an activation's interval is cut into where its deviation from a line is not known exactly.
_CELLS = 12


@dataclass(frozen=True)
class Lines:
    """``low_slope·z + low_offset ≤ f(z) ≤ high_slope·z + high_offset`` on an interval; each ``(batch, *shape)``."""

    low_slope: Tensor
    low_offset: Tensor
    high_slope: Tensor
    high_offset: Tensor

    def select(self, index: Tensor) -> Lines:
        """The samples at a 1-D index tensor."""
        return Lines(self.low_slope[index], self.low_offset[index], self.high_slope[index], self.high_offset[index])

    def widened(self, slack: Tensor) -> Lines:
        """The lines, each moved outward."""
        return Lines(self.low_slope, self.low_offset - slack, self.high_slope, self.high_offset + slack)


class Function(Protocol):
    """What lines are found from; an activation is one."""

    def value(self, z: Tensor) -> Tensor: ...

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange: ...

    def line_deviation(
        self, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange
    ) -> tuple[Tensor, Tensor]: ...


def best_lines(
    activation: Function, lower: Tensor, upper: Tensor, slopes: SlopeRange, tangent: Tensor | None = None
) -> Lines:
    """The best of the slopes (least, greatest, chord, a ``tangent``) on each side, by the value in the middle of the
    interval.

    For an unstable ReLU this is CROWN's relaxation: the chord above, and 0 or z below, whichever encloses less.
    """
    middle, at_middle = (lower + upper) / 2, activation.value((lower + upper) / 2)
    width = upper - lower
    chord = (activation.value(upper) - activation.value(lower)) / torch.where(width > 0, width, 1.0)
    chord = torch.where(width > 0, torch.minimum(torch.maximum(chord, slopes.low), slopes.high), slopes.low)
    best, best_low, best_high = None, width, width
    for slope in (slopes.low, slopes.high, chord, *([] if tangent is None else [tangent])):
        low, high = activation.line_deviation(slope, middle, lower, upper, slopes)
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


def deviation_by_cells(
    activation: Function, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Range of ``f(z) − f(anchor) − slope·(z − anchor)`` on the interval, from the slopes on each of a few cells."""
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
