"""Ranges of slopes, from which every rate of change is bounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlopeRange:
    """Interval ``[low, high]`` that holds every slope of an activation on a pre-activation interval.

    ``low`` and ``high`` have the shape of the pre-activation, ``(batch, *shape)``. ``low = high = 0`` means the neuron
    is eliminated (constant), ``low = high`` that it is linear there ("stable").
    """

    low: Tensor
    high: Tensor

    @property
    def centre(self) -> Tensor:
        """Midpoint ``C`` of the range."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half width ``R`` of the range; zero on stable neurons."""
        return (self.high - self.low) / 2

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute slope ``S``; for ReLU the 0/1 mask of the product bound."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def stable(self) -> Tensor:
        """Boolean mask of neurons that are linear on the interval."""
        return self.low == self.high

    @property
    def eliminated(self) -> Tensor:
        """Boolean mask of neurons that are constant on the interval."""
        return (self.low == 0) & (self.high == 0)
