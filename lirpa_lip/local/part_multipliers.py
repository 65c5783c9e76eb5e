"""What a bound of a part of a region is made with, and what a descent on it finds (`lirpa_lip.local.half_spaces`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cuts:
    """Intervals of one activation's pre-activations, a row for each part, ``(parts, neurons)``."""

    lower: Tensor
    upper: Tensor

    @property
    def empty(self) -> Tensor:
        """Parts of which the intervals leave nothing, ``(parts,)``."""
        return (self.lower > self.upper).any(1)


@dataclass(frozen=True)
class Multipliers:
    """What a bound of each part is made with, by activation.

    Attributes:
        slopes: g, ``(parts, neurons)``.
        offsets: b, ``(parts, neurons)``.
        logs: logarithms of λ and μ, ``(parts, 2)``.
    """

    slopes: dict[str, Tensor]
    offsets: dict[str, Tensor]
    logs: dict[str, Tensor]

    def _tables(self) -> tuple[dict[str, Tensor], ...]:
        return self.slopes, self.offsets, self.logs

    def select(self, index: Tensor) -> Multipliers:
        """Those of the parts at ``index``, which may repeat."""
        return Multipliers(*({name: t[index] for name, t in table.items()} for table in self._tables()))

    def to(self, dtype: torch.dtype) -> Multipliers:
        """In another precision: any numbers are valid."""
        return Multipliers(*({name: t.to(dtype) for name, t in table.items()} for table in self._tables()))

    @staticmethod
    def join(parts: Sequence[Multipliers]) -> Multipliers:
        """One after another."""
        tables = zip(*(part._tables() for part in parts))
        return Multipliers(*({name: torch.cat([t[name] for t in same]) for name in same[0]} for same in tables))


@dataclass(frozen=True)
class Descent:
    """What a descent found for each part.

    Attributes:
        upper: the smallest bound on the way, ``(parts,)``.
        multipliers: the last ones.
        x: a point of the region for each part that the last bound speaks for, ``(parts, *in)``.
        gaps: how much each neuron's bound exceeds its value at the pre-activations of x, ``(parts, neurons)``, by
            activation: together with the slack of balls and half-spaces they are what the bound exceeds the row at x
            by.
        strength: ``|c|`` at every neuron, ``(parts, neurons)``.
    """

    upper: Tensor
    multipliers: Multipliers
    x: Tensor
    gaps: dict[str, Tensor]
    strength: dict[str, Tensor]
