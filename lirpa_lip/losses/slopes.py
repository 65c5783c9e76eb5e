"""Activations as diagonal slopes around the centre: D = C + E with |E| ≤ R, the form the composed bound reads.

A slope here is that of a secant from the sample itself, (f(z) − f(z₀)) / (z − z₀): the margin's change is measured from
there. MaxMin is the rotation (x, y) → ((x + y)/√2, (x − y)/√2), an absolute value of the second half, and the rotation
back, so that an unordered pair has one uncertain direction (DESIGN: composed bound, MaxMin).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.local.layers import safe_sqrt
from lirpa_lip.losses.activations import intervals_of
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin

#: Secants over a shorter distance are taken for the slope at the centre.
MOVED = 1e-6

Ends = tuple[Tensor | float | None, Tensor | float | None]


class Diagonal(NamedTuple):
    """Slopes C ± R of elementwise functions, (batch, *shape): ``centre`` is C, ``root`` is R^½."""

    centre: Tensor
    root: Tensor


class Rotation(NamedTuple):
    """The orthogonal, symmetric rotation of channel pairs."""

    def apply(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([first + second, first - second], dim=1) * math.sqrt(0.5)


Factor = Diagonal | Rotation


def factors_of(layer: nn.Module, centre: Tensor, lower: Tensor, upper: Tensor) -> list[Factor]:
    """The activation's factors, in the order they are applied.

    Raises:
        UnsupportedOperatorError: an activation that is none of ReLU, clipped ReLU, MaxMin and clipped MaxMin.
    """
    if isinstance(layer, nn.ReLU | ClippedReLU):
        (part,) = intervals_of(layer, lower, upper)
        return [_diagonal(*_clip_secants(centre, lower, upper, (part.constant_below, part.constant_above)))]
    if isinstance(layer, MaxMin):
        return [Rotation(), _fold(centre, lower, upper), Rotation()]
    if isinstance(layer, ClippedMaxMin):
        top, bottom = intervals_of(layer, lower, upper)
        (x, y) = centre.chunk(2, dim=1)
        ceiling = _clip_secants(torch.maximum(x, y), top.lower, top.upper, (None, top.constant_above))
        floor = _clip_secants(torch.minimum(x, y), bottom.lower, bottom.upper, (bottom.constant_below, None))
        clip = _diagonal(*(torch.cat(pair, dim=1) for pair in zip(ceiling, floor, strict=True)))
        return [Rotation(), _fold(centre, lower, upper), Rotation(), clip]
    raise UnsupportedOperatorError(type(layer).__name__, type(layer).__name__, ("ReLU", "ClippedReLU", "MaxMin"))


def _diagonal(low: Tensor, high: Tensor) -> Diagonal:
    return Diagonal((low + high) / 2, safe_sqrt((high - low) / 2))


def _clip_secants(centre: Tensor, lower: Tensor, upper: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """Range of (f(z) − f(z₀)) / (z − z₀) over z in [lower, upper], for f(z) = min(max(z, a), b) and ends (a, b).

    On each linear piece a secant's slope is monotone in z, so the extremes are at the interval's ends and the kinks.
    From the middle piece the secants to the interval's ends are the flattest; from an outer one the secant to the far
    kink, or to the interval's end before it, is the steepest.
    """
    low, high = (None if end is None else torch.as_tensor(end).to(centre) for end in ends)
    if low is None and high is None:
        return torch.ones_like(centre), torch.ones_like(centre)
    if high is None:
        assert low is not None
        return _kink_secants(centre - low, lower - low, upper - low)
    if low is None:  # min(z, b) = z − max(z − b, 0)
        least, most = _kink_secants(centre - high, lower - high, upper - high)
        return 1 - most, 1 - least
    middle = (centre > low) & (centre < high)
    value = _clipped(centre, low, high)
    up, down = (torch.where(middle, end, _clipped(end, low, high)) for end in (upper, lower))
    rise = _secant(_clipped(up, low, high) - value, up - centre, middle)
    fall = _secant(value - _clipped(down, low, high), centre - down, middle)
    return torch.where(middle, torch.minimum(rise, fall), 0.0), torch.where(middle, 1.0, torch.maximum(rise, fall))


def _clipped(z: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(z, low), high)


def _secant(gain: Tensor, run: Tensor, here: Tensor) -> Tensor:
    """``gain / run``, or the slope at the centre where the run is too short, or not in this direction."""
    moved = run > MOVED
    return torch.where(moved, gain / torch.where(moved, run, 1.0), here.to(gain))


def _kink_secants(centre: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The range of `_clip_secants` for f(z) = max(z, 0), in closed form: fewer operations to go back through.

    Right of the kink the secant to the lower end is the flattest, left of it that to the upper end the steepest.
    """
    right = centre > 0
    top = torch.where(right, centre, upper.clamp(min=0))
    run = torch.where(right, centre - lower.clamp(max=0), top - centre)
    secant = _secant(top, run, right)
    return torch.where(right, secant, 0.0), torch.where(right, 1.0, secant)


def _fold(centre: Tensor, lower: Tensor, upper: Tensor) -> Diagonal:
    """Slopes of (s, d) → (s, |d|) on the rotated pairs; |d| = 2 relu(d) − d."""
    (x, y), (lx, ly), (ux, uy) = (t.chunk(2, dim=1) for t in (centre, lower, upper))
    scale = math.sqrt(0.5)
    low, high = _clip_secants((x - y) * scale, (lx - uy) * scale, (ux - ly) * scale, (0.0, None))
    ones = torch.ones_like(low)
    return _diagonal(torch.cat([ones, 2 * low - 1], dim=1), torch.cat([ones, 2 * high - 1], dim=1))
