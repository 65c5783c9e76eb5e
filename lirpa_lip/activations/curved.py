"""Activations of one curvature on every interval they are defined on: √, log, 1/z, powers; and the tangent function.

For f convex on [l, u] the chord is the tightest line above, and every tangent is below; a concave one is mirrored. No
cuts are needed, and the derivative may be infinite at an end (√ at 0): tangents are taken inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, Piece, SlopeRange
from lirpa_lip.activations.domains import or_infinite, widest
from lirpa_lip.activations.piecewise_linear import PiecewiseLinear
from lirpa_lip.activations.planes import Plane, Relaxation, Relaxations, ratio
from lirpa_lip.activations.smooth import Smooth

#: Where tangents touch: near the lower end, in the middle, near the upper end.
_TOUCH = (1 / 64, 0.5, 63 / 64)
#: Rounding units by which values and derivatives may be off.
_ROUNDING = 8


class Curved(Activation):
    """A function with a monotone derivative on each part of its domain.

    Args:
        fn, derivative: the function and its derivative.
        convex: where it is: a bool, or "right" for convex on z > 0 and concave on z < 0.
        positive: the domain: None for all numbers, "0" for z ≥ 0, "+" for z > 0, "±" for z ≠ 0.
        turn: where the derivative is 0, if anywhere.
        least, is_root: see `Activation`.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
        convex: bool | str,
        positive: str | None = None,
        turn: float | None = None,
        *,
        least: float = -math.inf,
        is_root: bool = False,
    ) -> None:
        self.least, self.is_root = least, is_root
        self.fn, self.derivative, self.convex, self.positive, self.turn = fn, derivative, convex, positive, turn

    def _inside(self, lower: Tensor, upper: Tensor) -> Tensor:
        if self.positive is None:
            return torch.ones_like(lower, dtype=torch.bool)
        return {"0": lower >= 0, "+": lower > 0, "±": (lower > 0) | (upper < 0)}[self.positive]

    def outside(self, lower: Tensor, upper: Tensor) -> str:
        inside = self._inside(lower, upper)
        if self.positive is None or bool(inside.all()):
            return ""
        needed = {"0": "that are not negative", "+": "above 0", "±": "on one side of 0"}[self.positive]
        return f"its input may lie in {widest(lower, upper, inside)}, and it is defined for inputs {needed}"

    def value(self, z: Tensor) -> Tensor:
        return self.fn(z)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        points = [lower, upper]
        if self.turn is not None:
            points.append(torch.full_like(lower, self.turn).clamp(lower, upper))
        values = torch.stack([self.fn(p) for p in points])
        low, high = values.amin(0), values.amax(0)
        slack = _ROUNDING * torch.finfo(low.dtype).eps
        rounded = [low - slack * low.abs(), high + slack * high.abs()]
        if self.turn is not None:  # the least value, where it turns, is exact
            rounded[0] = torch.where(low == self.fn(torch.full_like(low, self.turn)), low, rounded[0])
        return or_infinite(self._inside(lower, upper), rounded[0], rounded[1])

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        ends = torch.stack([self.derivative(lower), self.derivative(upper)])
        low, high = ends.amin(0), ends.amax(0)
        slack = _ROUNDING * torch.finfo(low.dtype).eps
        inside = self._inside(lower, upper)
        return SlopeRange(*or_infinite(inside, low - slack * low.abs(), high + slack * high.abs()))

    def _secants(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slopes from the anchor to the lower end, at it, and to the upper end, and how far rounding may move them.

        Secants of a function of one curvature are monotone in their other end, so that these are the extreme ones.
        """
        whole = self.slope_range(lower, upper)
        at_anchor, here = self.fn(anchor), self.derivative(anchor)
        found = []
        slack = _ROUNDING * torch.finfo(anchor.dtype).eps * here.abs()
        for end in (lower, upper):
            run, value = end - anchor, self.fn(end)
            near = run == 0
            slope = (value - at_anchor) / torch.where(near, 1.0, run)
            # rounding of a difference of nearly equal numbers grows as the points meet
            # (√ is infinitely steep at 0, where this secant's own slope serves: its ends are exact)
            steep = torch.where(torch.isfinite(whole.magnitude), whole.magnitude, slope.abs())
            size = value.abs() + at_anchor.abs() + (end.abs() + anchor.abs()) * steep
            noise = _ROUNDING * torch.finfo(anchor.dtype).eps * size / torch.where(near, 1.0, run.abs())
            slack = torch.maximum(slack, torch.where(near, 0.0, noise).detach())
            found.append(torch.where(near, here, slope))
        return found[0], here, found[1], slack

    def secant_range(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        """Exact up to rounding."""
        whole = self.slope_range(lower, upper)
        left, here, right, slack = self._secants(anchor, lower, upper)
        ends = torch.stack([left, here, right])
        low, high = torch.maximum(ends.amin(0) - slack, whole.low), torch.minimum(ends.amax(0) + slack, whole.high)
        usable = torch.isfinite(low) & torch.isfinite(high) & (low <= high)
        return SlopeRange(torch.where(usable, low, whole.low), torch.where(usable, high, whole.high))

    def pieces(self, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> list[Piece]:
        """On either side of the anchor the chord to the end, and the tangent."""
        left, here, right, slack = self._secants(anchor, lower, upper)
        low, high, zero = lower - anchor, upper - anchor, torch.zeros_like(anchor)
        found = []
        for end, start, stop in ((left, low, zero), (right, zero, high)):
            least = torch.maximum(torch.minimum(end, here) - slack, slopes.low)
            most = torch.minimum(torch.maximum(end, here) + slack, slopes.high)
            usable = torch.isfinite(least) & torch.isfinite(most) & (least <= most)
            least, most = torch.where(usable, least, slopes.low), torch.where(usable, most, slopes.high)
            found += [Piece(least, zero, start, stop), Piece(most, zero, start, stop)]
        return found

    def relaxations(self, lower: Tensor, upper: Tensor) -> Relaxations:
        """Tightest at the lower end, in the middle, at the upper end, for a finite interval inside the domain."""
        low_value, high_value = self.fn(lower), self.fn(upper)
        finite = torch.isfinite(low_value) & torch.isfinite(high_value)
        rise = torch.where(finite, high_value, 0.0) - torch.where(finite, low_value, 0.0)
        slope = ratio(rise, upper - lower, at_zero=0.0)
        chord = self._through(slope, ((lower, low_value), (upper, high_value)), finite)
        tangents = []
        for place in _TOUCH:
            point = torch.lerp(lower, upper, place).clamp(lower, upper)
            steep = self.derivative(point)
            steep = torch.where(torch.isfinite(steep) & finite & (upper > lower), steep, 0.0)
            tangents.append(self._through(steep, ((point, self.fn(point)),), finite))
        is_convex = torch.full_like(finite, self.convex) if isinstance(self.convex, bool) else lower > 0
        flat = self.interval(lower, upper)
        found = []
        for tangent in tangents:
            below = [torch.where(is_convex, t, c) for t, c in zip(tangent[0], chord[0], strict=True)]
            above = [torch.where(is_convex, c, t) for t, c in zip(tangent[1], chord[1], strict=True)]
            sides = []
            for (steep, offset), level in ((below, flat[0]), (above, flat[1])):
                keeps = finite & (steep != 0)
                sides.append(Plane((torch.where(keeps, steep, 0.0),), torch.where(keeps, offset, level)))
            found.append(Relaxation(*sides))
        return Relaxations(*found)

    def _through(
        self, slope: Tensor, points: Sequence[tuple[Tensor, Tensor]], finite: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(slope, offset) of the line on which all points lie, moved down, and moved up, by what rounding may do."""
        offsets = torch.stack([torch.where(finite, value, 0.0) - slope * z for z, value in points])
        size = torch.stack([torch.where(finite, value.abs(), 0.0) + (slope * z).abs() for z, value in points]).amax(0)
        slack = (_ROUNDING * torch.finfo(slope.dtype).eps * size).detach()
        return (slope, offsets.amin(0) - slack), (slope, offsets.amax(0) + slack)


def square_root() -> Curved:
    """``√z`` for z ≥ 0."""
    return Curved(torch.sqrt, lambda z: 0.5 * torch.rsqrt(z), False, "0", least=0.0, is_root=True)


def square() -> Curved:
    """``z²``."""
    return Curved(torch.square, lambda z: 2 * z, True, turn=0.0, least=0.0)


def reciprocal_root() -> Curved:
    """``1/√z`` for z > 0."""
    return Curved(torch.rsqrt, lambda z: -0.5 * torch.rsqrt(z) / z, True, "+")


def logarithm() -> Curved:
    """``log z`` for z > 0."""
    return Curved(torch.log, torch.reciprocal, False, "+")


def reciprocal() -> Curved:
    """``1/z`` for intervals on one side of 0."""
    return Curved(torch.reciprocal, lambda z: -torch.reciprocal(z * z), "right", "±")


def power(exponent: float) -> Activation:
    """``z ** exponent``; for a fractional exponent z ≥ 0, for a negative one z ≠ 0."""
    whole, even = exponent == int(exponent), exponent % 2 == 0

    def fn(z: Tensor) -> Tensor:
        return torch.pow(z, exponent)

    def derivative(z: Tensor) -> Tensor:
        return exponent * torch.pow(z, exponent - 1)

    if exponent in (0, 1):
        return PiecewiseLinear([0.0], [exponent, exponent], 1.0 - exponent)
    if exponent == 2:
        return square()
    if exponent == -0.5:
        return reciprocal_root()
    if whole and exponent < 0:
        return Curved(fn, derivative, True if even else "right", "±")
    if whole and even:
        return Curved(fn, derivative, True, turn=0.0)
    if whole:
        return Smooth(fn, derivative, slope_extrema=[0.0])
    return Curved(fn, derivative, not 0 < exponent < 1, "+" if exponent < 0 else "0")


class Tangent(Smooth):
    """``tan z`` on intervals without a pole; least steep half way between two poles."""

    def __init__(self) -> None:
        super().__init__(torch.tan, lambda z: 1 + torch.tan(z) ** 2)

    def _whole(self, lower: Tensor, upper: Tensor) -> Tensor:
        near = 16 * torch.finfo(lower.dtype).eps * (1 + torch.maximum(lower.abs(), upper.abs()))
        branch = [torch.floor((end + math.pi / 2) / math.pi) for end in (lower - near, upper + near)]
        return branch[0] == branch[1]

    def outside(self, lower: Tensor, upper: Tensor) -> str:
        whole = self._whole(lower, upper)
        if bool(whole.all()):
            return ""
        return f"its input may lie in {widest(lower, upper, whole)}, which holds a pole"

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return or_infinite(self._whole(lower, upper), *super().interval(lower, upper))

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        centre = torch.round((lower + upper) / 2 / math.pi) * math.pi
        slopes = torch.stack([self.derivative(p) for p in (lower, upper, centre.clamp(lower, upper))])
        low, high = slopes.amin(0), slopes.amax(0)
        # tan is as ill-conditioned as it is steep
        slack = 16 * torch.finfo(low.dtype).eps * (1 + torch.maximum(lower.abs(), upper.abs())) * high
        whole = self._whole(lower, upper)
        return SlopeRange((low - slack).clamp(min=0.0), torch.where(whole, high * (1 + 1e-5) + slack, torch.inf))


class Step(Activation):
    """A non-decreasing function with jumps: enclosed by its range; no Lipschitz bound knows it.

    Args:
        fn: the function, defined everywhere.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.fn = fn

    def value(self, z: Tensor) -> Tensor:
        return self.fn(z)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        ends = torch.stack([self.fn(lower), self.fn(upper)])
        return ends.amin(0), ends.amax(0)

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        jumps = (self.fn(lower) != self.fn(upper)) | closed
        return SlopeRange(torch.zeros_like(lower), torch.where(jumps, torch.inf, 0.0).to(lower))

    def relaxations(self, lower: Tensor, upper: Tensor) -> Relaxations:
        """Constants: the ends of the range."""
        zero = torch.zeros_like(lower)
        low, high = self.interval(lower, upper)
        relaxation = Relaxation(Plane((zero,), low), Plane((zero,), high))
        return Relaxations(*[relaxation] * 3)
