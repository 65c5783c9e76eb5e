"""Maxima, and soft ones, of many candidates: rounds of pairs, each a rotation, a fold and the winners.

A round takes candidates ``(x, y, rest)``, x and y the pairs' halves, and the one without a partner where their number
is odd. It turns them to ``(s, rest, d)``, folds d, and keeps ``((s + |d|)/√2, rest)``. All goes through the fold, which
leaves s and the rest as they are: so a round has one source, and its maps are isometries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation
from lirpa_lip.activations.kinked_functions import fold_last
from lirpa_lip.network.adapters.pairs import HALF, rotation
from lirpa_lip.network.emit import GraphBuilder
from lirpa_lip.network.node import Interval, Shortcut
from lirpa_lip.norms.linear_map import IndexedMap, LinearMap, ReshapeMap
from lirpa_lip.norms.maps.base import StructuralMap, TensorFn


class WinnersMap(StructuralMap):
    """``(s, rest, d) -> (c (s + d), rest)`` along the first axis: what a round keeps.

    Args:
        shape: of what it reads.
        pairs: their number.
        scale: c.
    """

    nonnegative = column_monomial = True
    most_terms = 2

    def __init__(
        self, shape: torch.Size, pairs: int, dtype: torch.dtype, device: torch.device, scale: float = HALF
    ) -> None:
        self.in_shape, self.out_shape = torch.Size(shape), torch.Size([shape[0] - pairs, *shape[1:]])
        self.pairs, self.scale, self.coisometric = pairs, scale, scale == HALF
        self._dtype, self._device = dtype, device

    def forward(self, x: Tensor) -> Tensor:
        kept = self.out_shape[0]
        won = self.scale * (x[:, : self.pairs] + x[:, kept:])
        return won if kept == self.pairs else torch.cat([won, x[:, self.pairs : kept]], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        shared = self.scale * y[:, : self.pairs]
        return torch.cat([shared, y[:, self.pairs :], shared], dim=1)

    def square(self) -> WinnersMap:
        return WinnersMap(self.in_shape, self.pairs, self._dtype, self._device, self.scale**2)


@dataclass(frozen=True)
class Candidates:
    """What takes part, ``(count, *rest)``.

    Attributes:
        parent: node they are read from.
        shape: of all of them.
        index: ``(count, entries)``, flat positions in the parent; ``None`` where the node holds them as they are.
    """

    parent: str
    shape: torch.Size
    index: Tensor | None = None

    def read(self, x: Tensor) -> Tensor:
        """Values of the parent as candidates, ``(batch, count, *rest)``."""
        if self.index is None:
            return x
        return x.flatten(1)[:, self.index.flatten()].reshape(-1, *self.shape)

    def turned(self, builder: GraphBuilder) -> LinearMap:
        """From the parent to ``(s, rest, d)``."""
        if self.index is None:
            return rotation(self.shape, builder.dtype, builder.device)
        half = self.shape[0] // 2
        first, second, rest = self.index[:half], self.index[half : 2 * half], self.index[2 * half :]
        turn = torch.full(first.shape, HALF, dtype=torch.float64)
        alone = torch.ones(rest.shape, dtype=torch.float64)
        index = torch.stack([torch.cat([first, rest, first]), torch.cat([second, rest, second])])
        values = torch.stack([torch.cat([turn, alone, turn]), torch.cat([turn, 0 * alone, -turn])])
        return self._map(builder, index, values, self.shape)

    def taken(self, builder: GraphBuilder, shape: torch.Size) -> LinearMap:
        """From the parent to the only candidate, in a shape."""
        if self.index is None:
            return ReshapeMap(self.shape, shape, dtype=builder.dtype, device=builder.device)
        return self._map(builder, self.index, torch.ones(self.index.shape, dtype=torch.float64), shape)

    def _map(self, builder: GraphBuilder, index: Tensor, values: Tensor, shape: torch.Size) -> IndexedMap:
        flat = index.reshape(len(index), -1), values.reshape(len(values), -1).to(index.device)
        return IndexedMap(*flat, builder.shape(self.parent), shape, builder.dtype)


@dataclass(frozen=True)
class Contest:
    """What a round decides.

    Attributes:
        fold: the function of d, side by side with the identity, from the turned shape and the number of pairs.
        larger: who wins of two, monotone in both.
        roundings: units of rounding that it may be off by, beside 1 and its size; 0 where it only selects.
    """

    fold: Callable[[torch.Size, int], Activation]
    larger: Callable[[Tensor, Tensor], Tensor]
    roundings: int = 0

    def won(self, candidates: Tensor) -> Tensor:
        """Who wins of each pair, and who has no partner."""
        half = candidates.shape[1] // 2
        found = self.larger(candidates[:, :half], candidates[:, half : 2 * half])
        return found if candidates.shape[1] == 2 * half else torch.cat([found, candidates[:, 2 * half :]], dim=1)

    def enclosed(self, lower: Tensor, upper: Tensor, read: TensorFn) -> Interval:
        """Bounds of the winners from those of what the candidates are read from; of a point its value."""
        low = self.won(read(lower))
        if upper is lower:
            return low, low
        high, slack = self.won(read(upper)), self.roundings * torch.finfo(low.dtype).eps
        return (low - slack * (1 + low.abs()), high + slack * (1 + high.abs())) if slack else (low, high)


def emit_tournament(
    builder: GraphBuilder,
    operator: str,
    output: str,
    candidates: Candidates,
    shape: torch.Size,
    *,
    shortcut: Shortcut,
    contest: Contest | None = None,
) -> str:
    """Emits the maximum over the first axis of the candidates, or what a contest decides, in the given shape."""
    contest = contest or maximum(builder)
    round_ = 0
    while candidates.shape[0] > 1:
        pairs, prefix = candidates.shape[0] // 2, f"{output}:{round_}"
        turned = builder.affine(f"{prefix}:rotate", operator, [candidates.parent], [candidates.turned(builder)])
        fold = contest.fold(candidates.shape, pairs)
        folded = builder.activation(f"{prefix}:fold", operator, turned, fold)
        kept = WinnersMap(candidates.shape, pairs, builder.dtype, builder.device)
        own = (candidates.parent, partial(contest.enclosed, read=candidates.read))
        winners = builder.affine(f"{prefix}:winners", operator, [folded], [kept], shortcut=own)
        candidates = Candidates(winners, kept.out_shape)
        round_ += 1
    return builder.affine(output, operator, [candidates.parent], [candidates.taken(builder, shape)], shortcut=shortcut)


def maximum(builder: GraphBuilder) -> Contest:
    """The larger of two."""
    return Contest(partial(fold_last, dtype=builder.dtype, device=builder.device), torch.maximum)
