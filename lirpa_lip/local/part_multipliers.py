"""What a bound of a part of a region is made with, and what a descent on it finds (`lirpa_lip.local.half_spaces`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Logarithm of what multipliers are divided by that another ball has taken the place of.
_REPLACED = 8.0


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
        logs: logarithms of λ and μ, ``(parts, 2)``; a third one of the row's own ball, where rows have such.
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

    def with_ball(self, logs: Mapping[str, Tensor], slopes: Mapping[str, Tensor] | None = None) -> Multipliers:
        """With a multiplier for a row's own ball, ``(parts, 1)``; where slopes come with it, in place of the others."""
        less = 0.0 if slopes is None else _REPLACED
        both = {name: torch.cat([t - less, logs[name]], 1) for name, t in self.logs.items()}
        return Multipliers({**self.slopes, **(slopes or {})}, self.offsets, both)

    @staticmethod
    def join(parts: Sequence[Multipliers]) -> Multipliers:
        """One after another."""
        tables = zip(*(part._tables() for part in parts))
        return Multipliers(*({name: torch.cat([t[name] for t in same]) for name in same[0]} for same in tables))


@dataclass(frozen=True)
class RowBalls:
    """A ball of its own for each row and activation; of weight and cost 0 where there is none.

    Attributes:
        weights: ``(rows, neurons)`` by activation.
        squares: ``(Lip(W^½ z) eps)²``, certified, ``(rows,)`` (`lirpa_lip.local.row_balls`).
    """

    weights: dict[str, Tensor]
    squares: dict[str, Tensor]

    def select(self, index: Tensor) -> RowBalls:
        """Those of the rows at ``index``, which may repeat."""
        return RowBalls(*({name: t[index] for name, t in table.items()} for table in (self.weights, self.squares)))

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Weights and squares of one activation."""
        return self.weights[name], self.squares[name]

    @staticmethod
    def join(rows: Sequence[Mapping[str, tuple[Tensor, Tensor]]]) -> RowBalls:
        """Rows one after another, each a weight ``(1, neurons)`` and a square ``(1,)`` by activation."""
        first = rows[0]
        return RowBalls(*({n: torch.cat([row[n][k] for row in rows]) for n in first} for k in range(2)))


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
