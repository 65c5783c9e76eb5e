"""Piecewise linear activations: ReLU, LeakyReLU, PReLU, abs, clip (HardTanh, ReLU6, clipped ReLU), all one record."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .traits import Activation, Piece, SlopeRange


class PiecewiseLinear(Activation):
    """Continuous ``f`` with ``f(0) = offset``-free form: slopes between ascending knots, and one point ``f(p) = q``.

    Args:
        knots: ``K`` ascending kink positions, numbers or tensors that broadcast to ``(batch, *shape)``.
        slopes: ``K + 1`` slopes, left to right, likewise.
        at_first_knot: the value ``f(knots[0])``.
    """

    def __init__(self, knots: Sequence, slopes: Sequence, at_first_knot) -> None:
        if len(slopes) != len(knots) + 1 or not knots:
            raise ValueError("a piecewise linear function has one slope more than it has knots, and at least one knot.")
        self.knots, self.slopes, self.at_first_knot = tuple(knots), tuple(slopes), at_first_knot

    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (*self.knots, *self.slopes) if isinstance(t, Tensor))

    def _on(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def full(v):
            return torch.as_tensor(v, dtype=like.dtype, device=like.device).expand_as(like)

        return [full(k) for k in self.knots], [full(s) for s in self.slopes]

    def value(self, z: Tensor) -> Tensor:
        knots, slopes = self._on(z)
        out = torch.as_tensor(self.at_first_knot, dtype=z.dtype, device=z.device)
        out = out + slopes[0] * (z - knots[0]).clamp(max=0)
        for i, knot in enumerate(knots):
            piece = (z - knot).clamp(min=0)
            if i + 1 < len(knots):
                piece = torch.minimum(piece, knots[i + 1] - knot)
            out = out + slopes[i + 1] * piece
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

    def deviation_range(self, slope, anchor, lower, upper, slopes):
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

    def pieces(self, anchor, lower, upper, slopes):
        """Exact: the function itself, from kink to kink."""
        knots, pieces = self._on(anchor)
        at_anchor = self.value(anchor)
        found = []
        for i, slope in enumerate(pieces):
            low = lower if i == 0 else torch.maximum(lower, knots[i - 1])
            high = upper if i == len(knots) else torch.minimum(upper, knots[i])
            knot = knots[min(i, len(knots) - 1)]
            offset = self.value(knot) - at_anchor - slope * (knot - anchor)
            found.append(Piece(slope, offset, low - anchor, high - anchor))
        return found


def relu() -> PiecewiseLinear:
    """``max(z, 0)``."""
    return PiecewiseLinear([0.0], [0.0, 1.0], 0.0)


def leaky_relu(slope) -> PiecewiseLinear:
    """``z`` for ``z > 0``, ``slope * z`` below; ``slope`` a number or a tensor (PReLU)."""
    return PiecewiseLinear([0.0], [slope, 1.0], 0.0)


def absolute() -> PiecewiseLinear:
    """``|z|``."""
    return PiecewiseLinear([0.0], [-1.0, 1.0], 0.0)


def clip(low=None, high=None) -> PiecewiseLinear:
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


def clip_half(high, low) -> PiecewiseLinear:
    """Clip used after MaxMin: the first half of the channels ``min(z, high)``, the second half ``max(z, low)``.

    ``high`` and ``low`` have the shape of half the channels, without the batch axis.
    """
    knots = torch.cat([high, low]).unsqueeze(0)
    one, zero = torch.ones_like(high), torch.zeros_like(high)
    left = torch.cat([one, zero]).unsqueeze(0)
    return PiecewiseLinear([knots], [left, 1 - left], knots)


def fold_half(shape: torch.Size, dtype: torch.dtype, device) -> PiecewiseLinear:
    """Identity on the first half of the channels, absolute value on the second: MaxMin between two rotations."""
    half = shape[0] // 2
    left = torch.ones(1, *shape, dtype=dtype, device=device)
    left[:, half:] = -1
    return PiecewiseLinear([0.0], [left, 1.0], 0.0)
