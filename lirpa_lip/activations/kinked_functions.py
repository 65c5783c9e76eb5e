"""Piecewise linear activations by name, and the ones that act on halves of the channels, for MaxMin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.activations.base import ConstantPart, Number, SlopeRange
from lirpa_lip.activations.numbers import full
from lirpa_lip.activations.piecewise_linear import PiecewiseLinear, steepest_of_clip


def relu() -> PiecewiseLinear:
    """``max(z, 0)``."""
    return PiecewiseLinear([0.0], [0.0, 1.0], 0.0, F.relu)


def leaky_relu(slope: Number) -> PiecewiseLinear:
    """``z`` for ``z > 0``, ``slope * z`` below; ``slope`` a number or a tensor (PReLU)."""
    return PiecewiseLinear([0.0], [slope, 1.0], 0.0)


def absolute() -> PiecewiseLinear:
    """``|z|``."""
    found = PiecewiseLinear([0.0], [-1.0, 1.0], 0.0, torch.abs)
    found.steep = True
    return found


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


class _ClipHalf(PiecewiseLinear):
    def __init__(self, high: Tensor, low: Tensor) -> None:
        knots = torch.cat([high, low]).unsqueeze(0)
        left = torch.cat([torch.ones_like(high), torch.zeros_like(low)]).unsqueeze(0)
        super().__init__([knots], [left, 1 - left], knots)
        self.high, self.low = high.unsqueeze(0), low.unsqueeze(0)
        self.is_monotone = True

    def value(self, z: Tensor) -> Tensor:
        top, bottom = z.chunk(2, dim=1)
        high, low = full(self.high, top), full(self.low, bottom)
        return torch.cat([torch.minimum(top, high), torch.maximum(bottom, low)], dim=1)

    def steepest_secant(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        (z, other_z), (low, other_low), (high, other_high) = (t.chunk(2, dim=1) for t in (anchor, lower, upper))
        top = steepest_of_clip(z, low, high, None, self.high)
        return torch.cat([top, steepest_of_clip(other_z, other_low, other_high, self.low, None)], dim=1)

    def constant_parts(self) -> tuple[ConstantPart, ...]:
        half = self.high.shape[1]
        top, bottom = slice(0, half), slice(half, None)
        return ConstantPart(top, above=self.high), ConstantPart(bottom, below=self.low)


def clip_half(high: Tensor, low: Tensor) -> PiecewiseLinear:
    """Clip used after MaxMin: the first half of the channels ``min(z, high)``, the second half ``max(z, low)``.

    ``high`` and ``low`` have the shape of half the channels, without the batch axis.
    """
    return _ClipHalf(high, low)


class _FoldLast(PiecewiseLinear):
    steep = True

    def __init__(self, first: int, left: Tensor) -> None:
        super().__init__([0.0], [left, 1.0], 0.0)
        self.first, self.fold = first, absolute()

    def value(self, z: Tensor) -> Tensor:
        return torch.cat([z[:, : self.first], z[:, self.first :].abs()], dim=1)

    def secant_range(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        found = self.fold.secant_range(*(t[:, self.first :] for t in (anchor, lower, upper)))
        ones = torch.ones_like(anchor[:, : self.first])
        return SlopeRange(torch.cat([ones, found.low], dim=1), torch.cat([ones, found.high], dim=1))


def fold_last(shape: torch.Size, count: int, dtype: torch.dtype, device: torch.device) -> PiecewiseLinear:
    """Absolute value on the last channels, identity on those before: what is between two rotations of a sort."""
    first = shape[0] - count
    left = torch.ones(1, *shape, dtype=dtype, device=device)
    left[:, first:] = -1
    return _FoldLast(first, left)
