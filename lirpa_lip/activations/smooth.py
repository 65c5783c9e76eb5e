"""Smooth activations: value and derivative ranges from a short list of their extreme points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, Piece, SlopeRange
from lirpa_lip.activations.enclosing_lines import Lines, best_lines


class Smooth(Activation):
    """An activation with a continuous derivative except, perhaps, at listed kinks.

    On ``[lower, upper]`` both ``f`` and ``f'`` take their extremes at the ends or at one of a few known points.

    Args:
        fn: the function.
        derivative: its derivative.
        value_extrema: points where ``f' = 0``.
        slope_extrema: points where ``f'' = 0`` or ``f'`` has a kink.
        jumps: ``(point, left, right)`` where the derivative jumps.
        curvature, curvature_extrema: the second derivative, and the points where the third is 0; only of a function
            whose derivative has no jumps.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
        value_extrema: Sequence[float] = (),
        slope_extrema: Sequence[float] = (),
        jumps: Sequence[tuple[float, float, float]] = (),
        *,
        curvature: Callable[[Tensor], Tensor] | None = None,
        curvature_extrema: Sequence[float] = (),
    ) -> None:
        self.fn, self.derivative = fn, derivative
        self.value_extrema, self.slope_extrema, self.jumps = tuple(value_extrema), tuple(slope_extrema), tuple(jumps)
        #: the derivative as a function of its own
        self.slope = None if curvature is None else Smooth(derivative, curvature, slope_extrema, curvature_extrema)

    def value(self, z: Tensor) -> Tensor:
        return self.fn(z)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        points = [lower, upper, *(_clamp(p, lower, upper) for p in self.value_extrema)]
        values = torch.stack([self.fn(p) for p in points])
        return values.amin(0), values.amax(0)

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        points = [lower, upper, *(_clamp(p, lower, upper) for p in self.slope_extrema)]
        slopes = [self.derivative(p) for p in points]
        for point, left, right in self.jumps:
            inside = (lower <= point) & (upper >= point)
            slopes += [torch.where(inside, torch.full_like(lower, s), slopes[0]) for s in (left, right)]
        stacked = torch.stack(slopes)
        low, high = stacked.amin(0), stacked.amax(0)
        # derivatives are rounded; a slope range must hold the true ones
        slack = 16 * torch.finfo(lower.dtype).eps
        return SlopeRange(low - slack * (1 + low.abs()), high + slack * (1 + high.abs()))

    def slope_lines(self, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> tuple[Lines, ...]:
        if self.slope is None:
            return ()
        # a derivative that is a difference is rounded as its terms are
        slack = 32 * torch.finfo(lower.dtype).eps * (1 + slopes.magnitude)
        steep = self.slope.slope_range(lower, upper, closed=True)
        tangent = self.slope.derivative((lower + upper) / 2)
        found = (best_lines(self.slope, lower, upper, steep, *extra) for extra in ((), (tangent,)))
        return tuple(line.widened(slack) for line in found)

    def pieces(self, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> list[Piece]:
        """The lines of the two extreme slopes as far as they stay in the range of values, and its ends beyond.

        Without the range a bounded function would grow with the interval.
        """
        at_anchor = self.value(anchor)
        least, most = self.interval(lower, upper)
        slack = 32 * torch.finfo(lower.dtype).eps * (at_anchor.abs() + torch.maximum(least.abs(), most.abs()))
        most, least = (most - at_anchor + slack).clamp(min=0), (least - at_anchor - slack).clamp(max=0)
        low, high, zero = lower - anchor, upper - anchor, torch.zeros_like(anchor)
        found = []
        for slope in (slopes.low, slopes.high):
            # where the line leaves the range: upwards on one side of the anchor, downwards on the other
            safe = torch.where(slope == 0, 1.0, slope)
            up = torch.where(slope == 0, torch.inf, most / safe)
            down = torch.where(slope == 0, -torch.inf, least / safe)
            rising = slope >= 0
            left, right = torch.where(rising, down, up), torch.where(rising, up, down)
            left, right = torch.where(slope == 0, -torch.inf, left), torch.where(slope == 0, torch.inf, right)
            left, right = left.clamp(min=low - 1 - low.abs()), right.clamp(max=high + 1 + high.abs())
            found.append(Piece(slope, zero, torch.maximum(low, left), torch.minimum(high, right)))
            before, after = torch.where(rising, least, most), torch.where(rising, most, least)
            found.append(Piece(zero, before, low, torch.minimum(high, left)))
            found.append(Piece(zero, after, torch.maximum(low, right), high))
        return [p for p in found if bool((p.low <= p.high).any())]


def _clamp(point: float, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(torch.full_like(lower, point), lower), upper)
