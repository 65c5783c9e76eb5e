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
from lirpa_lip.verify.exact_ball import ExactBall
from lirpa_lip.verify.rounding import above, below, nearest, root_above

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
        radius: of the ball around ``centre`` in exact arithmetic, or None.
        stated: the ball that a file states, where its centre is no number of the network's precision: ``radius`` is
            then larger by the distance ``shift`` of the two centres, so that it holds all of it.
    """

    centre: Tensor
    low: Tensor
    high: Tensor
    inner_low: Tensor
    inner_high: Tensor
    radius: Fraction | None = None
    stated: ExactBall | None = None
    shift: Fraction = Fraction(0)

    @classmethod
    def from_ranges(cls, spans: Sequence[Span], shape: Sequence[int], dtype: torch.dtype) -> InputRegion:
        """Per-feature ranges, in the order of the flat input.

        Raises:
            DataError: a range is empty or too large, or there is not one for each feature.
        """
        if len(spans) != math.prod(shape):
            raise DataError(f"{len(spans)} ranges for an input of {math.prod(shape)} features of shape {tuple(shape)}.")
        box = _box(spans, shape, dtype)
        centre = torch.minimum(
            torch.maximum(box["inner_low"] / 2 + box["inner_high"] / 2, box["inner_low"]), box["inner_high"]
        )
        return cls(centre, **box)

    @classmethod
    def from_ball(
        cls, ball: ExactBall, spans: Sequence[Span | None], shape: Sequence[int], dtype: torch.dtype
    ) -> InputRegion:
        """A ball, cut by the ranges of those features that have one; features that it does not name are fixed.

        Raises:
            DataError: such a feature has no range, or a wide one; the ball's centre lies outside of the ranges.
        """
        middles = dict(ball.centre)
        for index, span in enumerate(spans):
            middle = middles.get(index)
            if middle is None and (span is None or span.low != span.high):
                raise DataError(f"the ball leaves out input {index}, which is not fixed: square all inputs that vary.")
            if span is not None and middle is not None and not span.low <= middle <= span.high:
                raise DataError(
                    f"the centre of the ball lies outside of the range of input {index}; balls are read whose centre "
                    "lies in the ranges."
                )
            if span is not None:
                middles.setdefault(index, span.low)
        box = _box(spans, shape, dtype)
        exact_centre = [middles[index] for index in range(len(spans))]
        centre = torch.tensor([nearest(value) for value in exact_centre], dtype=torch.float64)
        centre = centre.to(dtype).reshape(1, *shape)
        if not bool(torch.isfinite(centre).all()):
            raise DataError("the centre of the ball exceeds what the network's precision holds; give finite numbers.")
        centre = torch.minimum(torch.maximum(centre, box["inner_low"]), box["inner_high"])
        pairs = zip(centre.flatten().tolist(), exact_centre)
        shift = root_above(sum(((Fraction(a) - b) ** 2 for a, b in pairs), Fraction(0)))
        radius = root_above(ball.squared) + shift
        nearest(radius)  # raises where it is none
        return cls(centre, **box, radius=radius, stated=ball, shift=shift)

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
            kind = _number(x.dtype)
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

    @property
    def reach(self) -> float:
        """Of the ball: how far from ``centre`` points are sought, so that rounding leaves them inside."""
        assert self.radius is not None
        inside = float(self.radius - 2 * self.shift)
        largest = self.centre.abs().max().item() + inside
        rounding = math.sqrt(self.centre.numel()) * torch.finfo(self.centre.dtype).eps * largest
        return max(0.0, inside * _INSIDE - rounding)

    def holds(self, x: Tensor) -> bool:
        """Whether a point ``(1, *shape)`` of the network's precision lies inside, in exact arithmetic; the centre
        does."""
        if not bool(((x >= self.inner_low) & (x <= self.inner_high)).all()):
            return False
        if self.radius is None or bool((x == self.centre).all()):
            return True
        if self.stated is not None:
            return self.stated.holds(x.flatten().tolist())
        moved = (x != self.centre).flatten()
        pairs = zip(x.flatten()[moved].tolist(), self.centre.flatten()[moved].tolist())
        return sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs) <= self.radius**2

    def project(self, x: Tensor) -> Tensor:
        """Points ``(n, *shape)`` moved into the region: onto the ball, then into the box, which holds the centre."""
        if self.radius is not None:
            step = (x - self.centre).flatten(1)
            length = step.norm(dim=1, keepdim=True).clamp(min=1e-30)
            step = step * (self.reach / length).clamp(max=1)
            x = self.centre + step.reshape(x.shape)
        return torch.minimum(torch.maximum(x, self.inner_low), self.inner_high)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Random points ``(count, *shape)``; half of them at the border."""
        shape = (count, *self.centre.shape[1:])
        if self.radius is not None:
            step = torch.randn(shape, generator=generator, dtype=torch.float64).flatten(1)
            share = torch.rand(count, 1, generator=generator, dtype=torch.float64).mul(2).clamp(max=1)
            step = step / step.norm(dim=1, keepdim=True).clamp(min=1e-30) * share * self.reach
            return self.project(self.centre + step.reshape(shape).to(self.centre))
        share = torch.rand(shape, generator=generator, dtype=torch.float64)
        rounded = torch.rand(count, *[1] * (len(shape) - 1), generator=generator) < 0.5
        share = torch.where(rounded, share.round(), share).to(self.centre)
        return self.project(self.inner_low + share * (self.inner_high - self.inner_low))


def _box(spans: Sequence[Span | None], shape: Sequence[int], dtype: torch.dtype) -> dict[str, Tensor]:
    """The ends of the ranges as an `InputRegion` has them, infinite where there is none.

    Raises:
        DataError: a range is empty, or exceeds what the precision holds.
    """
    number = _number(dtype)
    ends: list[tuple[float, ...]] = []
    for index, span in enumerate(spans):
        if span is None:
            ends.append((-math.inf, math.inf, -math.inf, math.inf))
            continue
        if span.empty:
            raise DataError(f"the range of input {index} is empty: {float(span.low):g} to {float(span.high):g}.")
        first, last = span.inner(number)
        ends.append((min(below(span.low), first), max(above(span.high), last), first, last))
        if not all(math.isfinite(end) for end in ends[-1]):
            raise DataError("a range of the input exceeds what the network's precision holds; give finite ranges.")
    kinds = {"low": torch.float64, "high": torch.float64, "inner_low": dtype, "inner_high": dtype}
    sides = zip(kinds.items(), zip(*ends))
    return {name: torch.tensor(side, dtype=kind).reshape(1, *shape) for (name, kind), side in sides}


def _number(dtype: torch.dtype) -> type[np.floating]:
    return np.float32 if dtype == torch.float32 else np.float64


def _up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 numbers in a precision, rounded up."""
    near = x.to(dtype)
    return torch.where(near.double() < x, torch.nextafter(near, torch.full_like(near, math.inf)), near)
