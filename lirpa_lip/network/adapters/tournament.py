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
from lirpa_lip.network.adapters.pairs import rotation
from lirpa_lip.network.emit import GraphBuilder
from lirpa_lip.network.node import Shortcut
from lirpa_lip.norms.linear_map import ComposedMap, IndexedMap, LinearMap, ReshapeMap
from lirpa_lip.norms.maps.base import TensorFn

_HALF = 0.5**0.5


class WinnersMap(LinearMap):
    """``(s, rest, d) -> (c (s + d), rest)`` along the first axis: what a round keeps.

    Args:
        shape: of what it reads.
        pairs: their number.
        scale: c.
    """

    structural = nonnegative = column_monomial = True
    most_terms = 2

    def __init__(
        self, shape: torch.Size, pairs: int, dtype: torch.dtype, device: torch.device, scale: float = _HALF
    ) -> None:
        self.in_shape, self.out_shape = torch.Size(shape), torch.Size([shape[0] - pairs, *shape[1:]])
        self.pairs, self.scale, self.coisometric = pairs, scale, scale == _HALF
        self._dtype, self._device = dtype, device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def forward(self, x: Tensor) -> Tensor:
        kept = self.out_shape[0]
        won = self.scale * (x[:, : self.pairs] + x[:, kept:])
        return won if kept == self.pairs else torch.cat([won, x[:, self.pairs : kept]], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        shared = self.scale * y[:, : self.pairs]
        return torch.cat([shared, y[:, self.pairs :], shared], dim=1)

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> WinnersMap:
        return self

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> WinnersMap:
        return WinnersMap(self.in_shape, self.pairs, dtype or self._dtype, device or self._device, self.scale)  # type: ignore[arg-type]

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
        turn = torch.full(first.shape, _HALF, dtype=torch.float64)
        alone = torch.ones(rest.shape, dtype=torch.float64)
        index = torch.stack([torch.cat([first, rest, first]), torch.cat([second, rest, second])])
        values = torch.stack([torch.cat([turn, alone, turn]), torch.cat([turn, 0 * alone, -turn])])
        return self._map(builder, index, values, self.shape)

    def alone(self, builder: GraphBuilder) -> LinearMap:
        """From the parent to the only candidate, ``(1, *rest)``."""
        if self.index is None:
            return ReshapeMap(self.shape, self.shape, dtype=builder.dtype, device=builder.device)
        values = torch.ones(1, self.index.numel(), dtype=torch.float64)
        return self._map(builder, self.index.reshape(1, -1), values, self.shape)

    def _map(self, builder: GraphBuilder, index: Tensor, values: Tensor, shape: torch.Size) -> IndexedMap:
        flat = index.reshape(len(index), -1), values.reshape(len(values), -1).to(index.device)
        return IndexedMap(*flat, builder.shape(self.parent), shape, builder.dtype)


@dataclass(frozen=True)
class Contest:
    """What a round decides.

    Attributes:
        fold: the function of d, side by side with the identity, from the turned shape and the number of pairs.
        enclose: bounds of the winners from those of the candidates.
    """

    fold: Callable[[torch.Size, int], Activation]
    enclose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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
        own = (candidates.parent, partial(_enclosed, read=candidates.read, enclose=contest.enclose))
        winners = builder.affine(f"{prefix}:winners", operator, [folded], [kept], shortcut=own)
        candidates = Candidates(winners, kept.out_shape)
        round_ += 1
    last = candidates.alone(builder)
    back = ReshapeMap(last.out_shape, shape, dtype=builder.dtype, device=builder.device)
    maps = back if candidates.index is None else ComposedMap([back, last])
    return builder.affine(output, operator, [candidates.parent], [maps], shortcut=shortcut)


def maximum(builder: GraphBuilder) -> Contest:
    """The larger of two."""
    return Contest(partial(fold_last, dtype=builder.dtype, device=builder.device), partial(_of_pairs, torch.maximum))


def _enclosed(
    lower: Tensor, upper: Tensor, read: TensorFn, enclose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    low = read(lower)
    return enclose(low, low if upper is lower else read(upper))


def won(larger: Callable[[Tensor, Tensor], Tensor], candidates: Tensor) -> Tensor:
    """The larger of each pair, and what has no partner."""
    half = candidates.shape[1] // 2
    found = larger(candidates[:, :half], candidates[:, half : 2 * half])
    return found if candidates.shape[1] == 2 * half else torch.cat([found, candidates[:, 2 * half :]], dim=1)


def _of_pairs(larger: Callable[[Tensor, Tensor], Tensor], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    low = won(larger, lower)
    return low, low if upper is lower else won(larger, upper)
