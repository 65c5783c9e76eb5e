"""Piecewise linear activations: ReLU, LeakyReLU, PReLU, abs, clip (HardTanh, ReLU6, clipped ReLU), all one record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, Number, Piece, SlopeRange

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
    """

    def __init__(self, knots: Sequence, slopes: Sequence, at_first_knot: Number) -> None:
        if len(slopes) != len(knots) + 1 or not knots:
            raise ValueError("a piecewise linear function has one slope more than it has knots, and at least one knot.")
        self.knots, self.slopes, self.at_first_knot = tuple(knots), tuple(slopes), at_first_knot
        self.intercepts = _intercepts(self.knots, self.slopes, at_first_knot)

    piecewise_linear = True

    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (*self.knots, *self.slopes) if isinstance(t, Tensor))

    def _on(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [_full(k, like) for k in self.knots], [_full(s, like) for s in self.slopes]

    def _lines_at(self, z: Tensor) -> list[Tensor]:
        """Every piece's line, whether ``z`` lies on it or not."""
        return [_full(s, z) * z + _full(c, z) for s, c in zip(self.slopes, self.intercepts, strict=True)]

    def value(self, z: Tensor) -> Tensor:
        out, *others = self._lines_at(z)
        for knot, line in zip(self.knots, others, strict=True):
            out = torch.where(z > _full(knot, z), line, out)
        return out

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
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
        def full(value: Number) -> Tensor:
            return torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().expand_as(like)

        return [full(k) for k in self.knots], [full(s) for s in self.slopes]

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


def _full(value: Number, like: Tensor) -> Tensor:
    """A number or tensor in the shape and type of ``like``; what exceeds the type is its largest number."""
    info = torch.finfo(like.dtype)
    if not isinstance(value, Tensor):
        value = min(max(value, info.min), info.max)
    elif value.dtype != like.dtype or not bool(torch.isfinite(value).all()):
        value = value.double().clamp(info.min, info.max)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)


def _intercepts(knots: Sequence, slopes: Sequence, at_first_knot: Number) -> list:
    """``c_0 = f(k_0) − s_0 k_0`` and ``c_{i+1} = c_i + (s_i − s_{i+1}) k_i``."""
    parts = (*knots, *slopes, at_first_knot)
    exact = not any(isinstance(t, Tensor) for t in parts)
    if exact:
        largest = Fraction(torch.finfo(torch.float64).max)
        bounded = [max(min(Fraction(t), largest), -largest) if math.isfinite(t) else largest * (1 if t > 0 else -1)
                   for t in parts]  # fmt: skip
        knots, slopes, at_first_knot = bounded[: len(knots)], bounded[len(knots) : -1], bounded[-1]
    else:
        knots, at_first_knot = [_finite(k) for k in knots], _finite(at_first_knot)
    found = [at_first_knot - slopes[0] * knots[0]]
    for knot, left, right in zip(knots, slopes, slopes[1:]):
        found.append(found[-1] + (left - right) * knot)
    return [float(c) for c in found] if exact else found


def _finite(value: Number):
    info = torch.finfo(value.dtype if isinstance(value, Tensor) and value.dtype.is_floating_point else torch.float64)
    return value.clamp(info.min, info.max) if isinstance(value, Tensor) else min(max(value, info.min), info.max)


def relu() -> PiecewiseLinear:
    """``max(z, 0)``."""
    return PiecewiseLinear([0.0], [0.0, 1.0], 0.0)


def leaky_relu(slope: Number) -> PiecewiseLinear:
    """``z`` for ``z > 0``, ``slope * z`` below; ``slope`` a number or a tensor (PReLU)."""
    return PiecewiseLinear([0.0], [slope, 1.0], 0.0)


def absolute() -> PiecewiseLinear:
    """``|z|``."""
    return PiecewiseLinear([0.0], [-1.0, 1.0], 0.0)


def clip(low: Number | None = None, high: Number | None = None) -> PiecewiseLinear:
    """``min(max(z, low), high)``; either end may be ``None``."""
    if low is None and high is None:
        raise ValueError("a clip needs at least one end.")
    if low is None:
        return PiecewiseLinear([high], [1.0, 0.0], high)
    if high is None:
        return PiecewiseLinear([low], [0.0, 1.0], low)
    return PiecewiseLinear([low, high], [0.0, 1.0, 0.0], low)


def hard_sigmoid(alpha: float = 0.2, beta: float = 0.5) -> PiecewiseLinear:
    """``min(max(alpha z + beta, 0), 1)``, alpha > 0."""
    return PiecewiseLinear([-beta / alpha, (1 - beta) / alpha], [0.0, alpha, 0.0], 0.0)


def clip_half(high: Tensor, low: Tensor) -> PiecewiseLinear:
    """Clip used after MaxMin: the first half of the channels ``min(z, high)``, the second half ``max(z, low)``.

    ``high`` and ``low`` have the shape of half the channels, without the batch axis.
    """
    knots = torch.cat([high, low]).unsqueeze(0)
    one, zero = torch.ones_like(high), torch.zeros_like(high)
    left = torch.cat([one, zero]).unsqueeze(0)
    return PiecewiseLinear([knots], [left, 1 - left], knots)


def fold_half(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> PiecewiseLinear:
    """Identity on the first half of the channels, absolute value on the second: MaxMin between two rotations."""
    half = shape[0] // 2
    left = torch.ones(1, *shape, dtype=dtype, device=device)
    left[:, half:] = -1
    return PiecewiseLinear([0.0], [left, 1.0], 0.0)
