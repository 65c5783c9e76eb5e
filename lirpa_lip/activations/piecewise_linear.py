"""Piecewise linear activations, all one record: ReLU, LeakyReLU, PReLU, |·|, clips (HardTanh, ReLU6, clipped ReLU)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, ConstantPart, Number, Piece, SlopeRange
from lirpa_lip.activations.numbers import full, intercepts, is_zero

#: Secants over a shorter distance carry no gradient: it would be that distance's inverse.
_MOVED = 1e-6

#: Distance to a kink, relative to the pre-activation's size, below which the slope counts as ambiguous.
_KINK = 1e-9


class PiecewiseLinear(Activation):
    """Continuous ``f``: slopes between ascending knots, and the value at the first of them.

    Each piece is a line ``slope · z + intercept`` of its own, so that a knot far away, or infinite, takes nothing from
    the precision of values here. Intercepts of numbers are exact; of tensors, differentiable.

    Args:
        knots: ``K`` ascending kink positions, numbers or tensors that broadcast to ``(batch, *shape)``.
        slopes: ``K + 1`` slopes, left to right, likewise.
        at_first_knot: the value ``f(knots[0])``.
        function: PyTorch's own function, where it is this one: one operation, with its own gradient at kinks.
    """

    def __init__(
        self,
        knots: Sequence,
        slopes: Sequence,
        at_first_knot: Number,
        function: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(slopes) != len(knots) + 1 or not knots:
            raise ValueError("a piecewise linear function has one slope more than it has knots, and at least one knot.")
        self.knots, self.slopes, self.at_first_knot = tuple(knots), tuple(slopes), at_first_knot
        self.intercepts = intercepts(self.knots, self.slopes, at_first_knot)
        self.function = function
        numbers = all(isinstance(slope, (int, float)) for slope in self.slopes)
        self.is_monotone = numbers and min(self.slopes) >= 0
        self.is_clip = numbers and self.slopes in ((0, 1), (1, 0), (0, 1, 0)) and at_first_knot is self.knots[0]

    piecewise_linear = True

    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (*self.knots, *self.slopes) if isinstance(t, Tensor))

    def _on(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [full(k, like) for k in self.knots], [full(s, like) for s in self.slopes]

    def _lines_at(self, z: Tensor) -> list[Tensor]:
        """Every piece's line, whether ``z`` lies on it or not."""
        return [full(s, z) * z + full(c, z) for s, c in zip(self.slopes, self.intercepts, strict=True)]

    def value(self, z: Tensor) -> Tensor:
        if self.function is not None:
            return self.function(z)
        out, *others = self._lines_at(z)
        for knot, line in zip(self.knots, others, strict=True):
            out = torch.where(z > full(knot, z), line, out)
        return out

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_monotone:
            return self.value(lower), self.value(upper)
        knots, _ = self._on(lower)
        values = [self.value(p) for p in (lower, upper)]
        values += [self.value(torch.minimum(torch.maximum(k, lower), upper)) for k in knots]
        stacked = torch.stack(values)
        return stacked.amin(0), stacked.amax(0)

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        knots, slopes = self._on(lower)
        point = (lower == upper) | closed
        low = torch.full_like(lower, torch.inf)
        high = torch.full_like(lower, -torch.inf)
        for i, slope in enumerate(slopes):
            inside = torch.ones_like(point)
            if i > 0:
                inside = inside & ((upper > knots[i - 1]) | (point & (upper == knots[i - 1])))
            if i < len(knots):
                inside = inside & ((lower < knots[i]) | (point & (lower == knots[i])))
            if 0 < i < len(knots):
                inside = inside & (knots[i - 1] < knots[i])
            low = torch.where(inside, torch.minimum(low, slope), low)
            high = torch.where(inside, torch.maximum(high, slope), high)
        return SlopeRange(low, high)

    def secant_range(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        """Exact up to rounding: on each piece the secant slope is monotone, so its extremes lie at ends and kinks."""
        if self.is_clip and len(self.knots) == 2:
            return self._clip_secants(anchor, lower, upper)
        if len(self.knots) == 1:
            return self._kink_secants(anchor, lower, upper)
        return self._all_secants(anchor, lower, upper)

    def _kink_secants(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        """In closed form, for ``f(z) = a z + (b − a) max(z − k, 0) + c``.

        Right of the kink the secant to the lower end is the flattest of ``max(z − k, 0)``, left of it that to the upper
        end the steepest. All that is subtracted has opposite signs, so that no digits are lost.
        """
        knot, (a, b) = self.knots[0], self.slopes
        if isinstance(knot, Tensor) or knot != 0:
            knot = full(knot, anchor)
            anchor, lower, upper = anchor - knot, lower - knot, upper - knot
        right = (anchor > 0) | ((lower >= 0) & (upper > 0))
        crossing = (lower < 0) & (upper > 0)
        run = torch.where(right, anchor - lower, upper - anchor)
        secant = _quotient(torch.where(right, anchor, upper), run, crossing)
        slack, whole = self._secant_slack(anchor), right.to(anchor.dtype)
        low = torch.where(right & crossing, (secant - slack).clamp(min=0), whole)
        high = torch.where(crossing & ~right, (secant + slack).clamp(max=1), whole)
        if self.is_clip and a == 0:
            return SlopeRange(low, high)
        if self.steep and not isinstance(a, Tensor):
            return SlopeRange(2 * low - 1, 2 * high - 1)
        a, b = full(a, anchor), full(b, anchor)
        low, high = torch.lerp(a, b, low), torch.lerp(a, b, high)
        return SlopeRange(torch.minimum(low, high), torch.maximum(low, high))

    def _secant_slack(self, like: Tensor) -> Tensor | float:
        """Of secants of ``max(z − k, 0)``, for their own rounding and for that of ``a + (b − a) secant``."""
        a, b = (torch.as_tensor(slope, dtype=like.dtype, device=like.device).detach() for slope in self.slopes)
        change = (b - a).abs().clamp(min=torch.finfo(like.dtype).tiny)
        slack = 8 * torch.finfo(like.dtype).eps * (1 + (a.abs() + b.abs()) / change)
        return slack if slack.ndim else float(slack)

    def _clip_secants(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        """In closed form, for ``f(z) = min(max(z, k₀), k₁)``.

        From the middle piece the secants to the interval's ends are the flattest; from an outer one the secant to the
        far kink, or to the interval's end before it, is the steepest.
        """
        first, last = (full(knot, anchor) for knot in self.knots)
        # a centre on a kink that is an end of the interval sees the other side alone
        middle = (anchor > first) | ((lower >= first) & (upper > first))
        middle &= (anchor < last) | ((upper <= last) & (lower < last))
        top, bottom, here = (torch.minimum(torch.maximum(z, first), last) for z in (upper, lower, anchor))
        slack = 16 * torch.finfo(anchor.dtype).eps
        up, down = torch.where(middle, upper, top) - anchor, anchor - torch.where(middle, lower, bottom)
        rise, fall = top - here, here - bottom
        rising, falling = _quotient(rise, up, rise > 0), _quotient(fall, down, fall > 0)
        inside = middle & (lower >= first) & (upper <= last)
        ends = torch.minimum(torch.where(rise > 0, rising, 1.0), torch.where(fall > 0, falling, 1.0))
        low = torch.where(middle, torch.where(inside, 1.0, (ends - slack).clamp(min=0)), 0.0)
        outer = torch.maximum(rising, falling)
        return SlopeRange(low, torch.where(middle, 1.0, torch.where(outer > 0, (outer + slack).clamp(max=1), 0.0)))

    def steepest_secant(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        if not self.is_clip:
            return super().steepest_secant(anchor, lower, upper)
        floor = self.knots[0] if is_zero(self.slopes[0]) else None
        ceiling = self.knots[-1] if is_zero(self.slopes[-1]) else None
        return steepest_of_clip(anchor, lower, upper, floor, ceiling)

    def _all_secants(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        whole = self.slope_range(lower, upper)
        here = self.slope_range(anchor, anchor)
        low, high = here.low, here.high
        at_anchor = self.value(anchor)
        eps = torch.finfo(lower.dtype).eps
        for knot in (lower, upper, *self._on(lower)[0]):
            point = torch.minimum(torch.maximum(knot, lower), upper)
            value, run = self.value(point), point - anchor
            safe = torch.where(run == 0, torch.ones_like(run), run)
            secant = (value - at_anchor) / safe
            # rounding of a difference of nearly equal numbers grows as the points meet
            scale = value.abs() + at_anchor.abs() + (point.abs() + anchor.abs()) * whole.magnitude
            slack = (8 * eps * scale / safe.abs()).detach()
            low = torch.where(run == 0, low, torch.minimum(low, secant - slack))
            high = torch.where(run == 0, high, torch.maximum(high, secant + slack))
        # an anchor on a kink outside the open interval may see a slope no secant in it has: never leave the slopes
        low, high = torch.maximum(low, whole.low), torch.minimum(high, whole.high)
        exact = whole.stable
        return SlopeRange(torch.where(exact, whole.low, low), torch.where(exact, whole.high, high))

    def constant_parts(self) -> tuple[ConstantPart, ...]:
        below, above = (self.knots[end] if is_zero(self.slopes[end]) else None for end in (0, -1))
        return () if below is None and above is None else (ConstantPart(slice(None), below, above),)

    def clarke_range(self, lower: Tensor, upper: Tensor, after: Tensor, before: Tensor) -> SlopeRange:
        knots, slopes = self._detached(lower)
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

    def split_point(self, lower: Tensor, upper: Tensor, after: Tensor, before: Tensor) -> Tensor:
        """The kink nearest the middle."""
        middle = (lower + upper) / 2
        best, distance = torch.full_like(lower, torch.nan), torch.full_like(lower, torch.inf)
        for knot in self._detached(lower)[0]:
            inside = (knot >= lower) & (knot <= upper) & (knot > after) & (knot < before)
            away = torch.where(inside, (knot - middle).abs(), torch.inf)
            best, distance = torch.where(away < distance, knot, best), torch.minimum(away, distance)
        return best

    def line_deviation(
        self, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange
    ) -> tuple[Tensor, Tensor]:
        return self.deviation_range(slope, anchor, lower, upper, slopes)

    def slope_at(self, z: Tensor) -> SlopeRange:
        room, infinite = _KINK * (1 + z.abs()), torch.full_like(z, torch.inf)
        return self.clarke_range(z - room, z + room, -infinite, infinite)

    def smoothed_slope(self, z: Tensor, scale: Tensor) -> Tensor:
        knots, slopes = self._detached(z)
        total = slopes[0]
        for knot, before, after in zip(knots, slopes, slopes[1:]):
            total = total + (after - before) * torch.sigmoid((z - knot) * scale)
        return total

    def _detached(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def there(value: Number) -> Tensor:
            return torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().expand_as(like)

        return [there(k) for k in self.knots], [there(s) for s in self.slopes]

    def deviation_range(self, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange):
        """Exact: the deviation from a line is piecewise linear too, extreme at end points and kinks."""
        at_anchor = self.value(anchor)
        values = [torch.zeros_like(anchor)]
        for knot in (lower, upper, *self._on(lower)[0]):
            point = torch.minimum(torch.maximum(knot, lower), upper)
            values.append(self.value(point) - at_anchor - slope * (point - anchor))
        stacked = torch.stack(values)
        exact = slopes.stable & (slope == slopes.low)
        zero = torch.zeros_like(anchor)
        return torch.where(exact, zero, stacked.amin(0)), torch.where(exact, zero, stacked.amax(0))

    def pieces(self, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange):
        """Exact: the function itself, from kink to kink."""
        knots, pieces = self._on(anchor)
        at_anchor = self.value(anchor)
        found = []
        for i, (slope, line) in enumerate(zip(pieces, self._lines_at(anchor), strict=True)):
            low = lower if i == 0 else torch.maximum(lower, knots[i - 1])
            high = upper if i == len(knots) else torch.minimum(upper, knots[i])
            found.append(Piece(slope, line - at_anchor, low - anchor, high - anchor))
        return found


def steepest_of_clip(
    anchor: Tensor, lower: Tensor, upper: Tensor, floor: Number | None, ceiling: Number | None
) -> Tensor:
    """1 between the ends of a clip; from beyond one, the secant to the other, or to the interval's end before it."""
    tiny = torch.finfo(anchor.dtype).tiny
    first, last = (None if end is None else full(end, anchor) for end in (floor, ceiling))
    found: Tensor | None = None
    if first is not None:
        top = torch.clamp(upper, first, last)
        rise = top - first
        found = rise / torch.maximum(top - anchor, rise).clamp_(min=tiny)
    if last is not None:
        bottom = torch.clamp(lower, first, last)
        fall = last - bottom
        steep = fall / torch.maximum(anchor - bottom, fall).clamp_(min=tiny)
        found = steep if found is None else found.mul_(steep)
    assert found is not None
    return found


def _quotient(part: Tensor, run: Tensor, where: Tensor) -> Tensor:
    """``part / run`` where that is asked for, else 0; secants over next to no distance pass no gradient."""
    found = torch.where(where, part / torch.where(where, run, 1.0), 0.0)
    return torch.where(run > _MOVED, found, found.detach()) if found.requires_grad else found
