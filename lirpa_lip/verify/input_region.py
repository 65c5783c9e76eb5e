"""The region of one instance, twice: rounded outward for proofs, and inward for what counts as a counterexample.

Numbers come as exact fractions. A proof is about a set that contains the one asked for. A counterexample lies in the
one asked for, coordinate by coordinate in the network's own precision; where no number of that precision lies between
two ends (``X_0 = 0.1`` in float32), the number nearest to them counts as inside, and the proof's set has it as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, DataError, NonFiniteError
from lirpa_lip.precision import next_above, next_below
from lirpa_lip.verify.rounding import above, below

#: A point that was projected onto the sphere is this much inside, so that rounding leaves it in the ball.
_INSIDE = 1 - 1e-6


@dataclass(frozen=True)
class Span:
    """The range of one feature; an open end is not part of it."""

    low: Fraction
    high: Fraction
    open_low: bool = False
    open_high: bool = False

    @property
    def empty(self) -> bool:
        return self.low > self.high or (self.low == self.high and (self.open_low or self.open_high))

    def inner(self, kind: type[np.floating]) -> tuple[float, float]:
        """The least and the largest number of a type inside; where there is none, the nearest to the middle twice."""
        first, last = above(self.low, kind), below(self.high, kind)
        if self.open_low and Fraction(first) == self.low:
            first = float(np.nextafter(kind(first), kind(math.inf)))
        if self.open_high and Fraction(last) == self.high:
            last = float(np.nextafter(kind(last), kind(-math.inf)))
        if first > last:
            first = last = float(kind(float((self.low + self.high) / 2)))
        return first, last


@dataclass(frozen=True, eq=False)
class InputRegion:
    """A box, and where ``radius`` is given its intersection with an ℓ₂ ball around the centre.

    Attributes:
        centre: ``(1, *shape)`` in the network's precision, a point of the region.
        low, high: ``(1, *shape)`` float64, ends rounded outward; infinite for a ball that no box cuts.
        inner_low, inner_high: ``(1, *shape)`` in the network's precision, rounded inward.
        radius: of the ball in exact arithmetic, or None.
    """

    centre: Tensor
    low: Tensor
    high: Tensor
    inner_low: Tensor
    inner_high: Tensor
    radius: Fraction | None = None

    @classmethod
    def from_ranges(cls, spans: Sequence[Span], shape: Sequence[int], dtype: torch.dtype) -> InputRegion:
        """Per-feature ranges, in the order of the flat input.

        Raises:
            DataError: a range is empty or too large, or there is not one for each feature.
        """
        if len(spans) != math.prod(shape):
            raise DataError(f"{len(spans)} ranges for an input of {math.prod(shape)} features of shape {tuple(shape)}.")
        for index, span in enumerate(spans):
            if span.empty:
                raise DataError(f"the range of input {index} is empty: {float(span.low):g} to {float(span.high):g}.")
        kind = np.float32 if dtype == torch.float32 else np.float64
        inner = [span.inner(kind) for span in spans]
        outer = [(min(below(s.low), first), max(above(s.high), last)) for s, (first, last) in zip(spans, inner)]

        def tensor(values: list[float], kind: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=kind).reshape(1, *shape)

        if not all(math.isfinite(end) for pair in (*inner, *outer) for end in pair):
            raise DataError("a range of the input exceeds what the network's precision holds; give finite ranges.")
        starts, ends = (tensor([pair[side] for pair in inner], dtype) for side in (0, 1))
        centre = torch.minimum(torch.maximum(starts / 2 + ends / 2, starts), ends)
        low, high = (tensor([pair[side] for pair in outer], torch.float64) for side in (0, 1))
        return cls(centre, low, high, starts, ends)

    @classmethod
    def around(cls, x: Tensor, norm: float, eps: Fraction, box: tuple[Fraction, Fraction] | None = None) -> InputRegion:
        """The ball of radius ``eps`` around ``x`` ``(1, *shape)``, of ℓ₂ or ℓ∞, cut by the box of possible inputs.

        Raises:
            NonFiniteError: ``x`` is.
            ConfigError: another norm; ``x`` outside the box.
        """
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError("an input", "give finite numbers")
        if norm not in (2, math.inf):
            raise ConfigError(f"regions are balls of norm 2 or inf; got norm={norm}.")
        wide = x.double()
        low, high = torch.full_like(wide, -math.inf), torch.full_like(wide, math.inf)
        inner_low, inner_high = torch.full_like(x, -math.inf), torch.full_like(x, math.inf)
        if norm == math.inf:
            low, high = next_below(wide - above(eps)), next_above(wide + above(eps))
            inner_low, inner_high = (
                torch.minimum(_up(next_above(wide - below(eps)), x.dtype), x),
                torch.maximum(-_up(next_above(-wide - below(eps)), x.dtype), x),
            )
        if box is not None:
            kind = np.float32 if x.dtype == torch.float32 else np.float64
            ends = [above(box[0], kind), below(box[1], kind)]
            nearest = [min(ends[0], float(kind(float(box[0])))), max(ends[1], float(kind(float(box[1]))))]
            if bool(((x < nearest[0]) | (x > nearest[1])).any()):
                raise ConfigError(
                    f"an input lies outside the box of possible inputs, {float(box[0]):g} to {float(box[1]):g}: its "
                    f"values reach from {x.min().item():g} to {x.max().item():g}; give --box as the data has it."
                )
            low = low.clamp(min=min(below(box[0]), nearest[0]))
            high = high.clamp(max=max(above(box[1]), nearest[1]))
            inner_low = torch.minimum(inner_low.clamp(min=ends[0]), x)
            inner_high = torch.maximum(inner_high.clamp(max=ends[1]), x)
        return cls(x, low, high, inner_low, inner_high, eps if norm == 2 else None)

    @property
    def is_ball(self) -> bool:
        return self.radius is not None

    @property
    def has_box(self) -> bool:
        return bool(torch.isfinite(self.low).any() | torch.isfinite(self.high).any())

    def enclosing(self) -> tuple[Tensor, Tensor]:
        """Centre in float64 and radius ``(1,)`` of an ℓ₂ ball that contains the region: its own, or one around the
        box."""
        if self.radius is not None:
            return self.centre.double(), torch.tensor([above(self.radius)], dtype=torch.float64)
        centre = self.low / 2 + self.high / 2
        reach = torch.maximum(next_above(self.high - centre), next_above(centre - self.low)).flatten(1)
        reach = torch.where((self.high == self.low).flatten(1), 0.0, reach)
        size = reach.norm(dim=1)
        return centre, size * (1 + 4 * (reach.shape[1] + 8) * torch.finfo(torch.float64).eps)

    def holds(self, x: Tensor) -> bool:
        """Whether a point ``(1, *shape)`` of the network's precision lies inside, in exact arithmetic."""
        if not bool(((x >= self.inner_low) & (x <= self.inner_high)).all()):
            return False
        if self.radius is None:
            return True
        moved = (x != self.centre).flatten()
        pairs = zip(x.flatten()[moved].tolist(), self.centre.flatten()[moved].tolist())
        return sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs) <= self.radius**2

    def project(self, x: Tensor) -> Tensor:
        """Points ``(n, *shape)`` moved into the region: onto the ball, then into the box, which holds the centre."""
        if self.radius is not None:
            step = (x - self.centre).flatten(1)
            length = step.norm(dim=1, keepdim=True).clamp(min=1e-30)
            step = step * (float(self.radius) * _INSIDE / length).clamp(max=1)
            x = self.centre + step.reshape(x.shape)
        return torch.minimum(torch.maximum(x, self.inner_low), self.inner_high)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Random points ``(count, *shape)``; half of them at the border."""
        shape = (count, *self.centre.shape[1:])
        if self.radius is not None:
            step = torch.randn(shape, generator=generator, dtype=torch.float64).flatten(1)
            share = torch.rand(count, 1, generator=generator, dtype=torch.float64).mul(2).clamp(max=1)
            step = step / step.norm(dim=1, keepdim=True).clamp(min=1e-30) * share * float(self.radius)
            return self.project(self.centre + step.reshape(shape).to(self.centre))
        share = torch.rand(shape, generator=generator, dtype=torch.float64)
        rounded = torch.rand(count, *[1] * (len(shape) - 1), generator=generator) < 0.5
        share = torch.where(rounded, share.round(), share).to(self.centre)
        return self.project(self.inner_low + share * (self.inner_high - self.inner_low))


def _up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 numbers in a precision, rounded up."""
    near = x.to(dtype)
    return torch.where(near.double() < x, torch.nextafter(near, torch.full_like(near, math.inf)), near)
