"""Inverse sine and cosine, and the inverse hyperbolic functions: smooth, some of them on an open interval only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.activations.domains import or_infinite, widest
from lirpa_lip.activations.smooth import Smooth


class OnInterval(Smooth):
    """A function between two ends, at which it is infinitely steep or has a pole.

    Args:
        fn, derivative, slope_extrema: as of `Smooth`, inside.
        ends: the two; neither belongs to the domain.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
        slope_extrema: Sequence[float],
        ends: tuple[float, float],
    ) -> None:
        super().__init__(fn, derivative, slope_extrema=slope_extrema)
        self.ends = ends

    def _inside(self, lower: Tensor, upper: Tensor) -> Tensor:
        return (lower > self.ends[0]) & (upper < self.ends[1])

    def outside(self, lower: Tensor, upper: Tensor) -> str:
        inside = self._inside(lower, upper)
        if bool(inside.all()):
            return ""
        start, end = self.ends
        domain = f"above {start:g}" if end == math.inf else f"between {start:g} and {end:g}"
        return f"its input may lie in {widest(lower, upper, inside)}, and it has slopes for inputs {domain}"

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return or_infinite(self._inside(lower, upper), *super().interval(lower, upper))

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        found = super().slope_range(lower, upper, closed)
        return SlopeRange(*or_infinite(self._inside(lower, upper), found.low, found.high))


def _over_root(z: Tensor) -> Tensor:
    return ((1 - z) * (1 + z)) ** -0.5


def arc_sine() -> OnInterval:
    """``asin(z)`` for −1 < z < 1; least steep at 0."""
    return OnInterval(torch.asin, _over_root, [0.0], (-1.0, 1.0))


def arc_cosine() -> OnInterval:
    """``acos(z)`` for −1 < z < 1; least steep at 0."""
    return OnInterval(torch.acos, lambda z: -_over_root(z), [0.0], (-1.0, 1.0))


def area_sine() -> Smooth:
    """``asinh(z)``; steepest at 0."""
    return Smooth(torch.asinh, lambda z: 1 / torch.hypot(z, torch.ones_like(z)), slope_extrema=[0.0])


def area_cosine() -> OnInterval:
    """``acosh(z)`` for z > 1; the derivative is monotone."""
    return OnInterval(torch.acosh, lambda z: ((z - 1) * (z + 1)) ** -0.5, [], (1.0, math.inf))


def area_tangent() -> OnInterval:
    """``atanh(z)`` for −1 < z < 1; least steep at 0."""
    return OnInterval(torch.atanh, lambda z: 1 / ((1 - z) * (1 + z)), [0.0], (-1.0, 1.0))
