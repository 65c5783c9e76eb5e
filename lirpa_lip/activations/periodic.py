"""Sine and cosine: whether an interval holds one of infinitely many extreme points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.activations.smooth import Smooth

#: Rounding units by which an extreme point may be missed, or a value be off.
_NEAR = 4


class Wave(Smooth):
    """``sin(z + phase)``, the phase a multiple of π/2.

    Args:
        quarters: the phase in quarters of a turn; 0 for the sine, 1 for the cosine.
    """

    def __init__(self, quarters: int) -> None:
        self.quarters = quarters
        functions = (torch.sin, torch.cos, lambda z: -torch.sin(z), lambda z: -torch.cos(z))
        super().__init__(functions[quarters % 4], functions[(quarters + 1) % 4])

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self._range(self.quarters, lower, upper)

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        return SlopeRange(*self._range(self.quarters + 1, lower, upper))

    def _range(self, quarters: int, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        fn = (torch.sin, torch.cos, lambda z: -torch.sin(z), lambda z: -torch.cos(z))[quarters % 4]
        ends = torch.stack([fn(lower), fn(upper)])
        slack = _NEAR * torch.finfo(lower.dtype).eps
        near = slack * (4 + torch.maximum(lower.abs(), upper.abs()))  # points are rounded numbers
        top = _holds(math.pi / 2 * (1 - quarters), lower - near, upper + near)
        bottom = _holds(math.pi / 2 * (-1 - quarters), lower - near, upper + near)
        low = torch.where(bottom, -1.0, (ends.amin(0) - slack).clamp(min=-1.0))
        return low, torch.where(top, 1.0, (ends.amax(0) + slack).clamp(max=1.0))


def _holds(point: float, lower: Tensor, upper: Tensor) -> Tensor:
    """Whether ``[lower, upper]`` holds ``point + 2πk`` for a whole number k, or is not finite."""
    turns = torch.ceil((lower - point) / (2 * math.pi))
    return ~(turns * (2 * math.pi) + point > upper)


def sine() -> Wave:
    """``sin z``."""
    return Wave(0)


def cosine() -> Wave:
    """``cos z``."""
    return Wave(1)
