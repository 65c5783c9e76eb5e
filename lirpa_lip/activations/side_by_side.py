"""Two functions side by side: one on the first channels, one on the others."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, Piece, SlopeRange


class SideBySide(Activation):
    """``first`` on the first part of axis 1, ``second`` on the rest.

    Args:
        first, second: the two functions.
        at: where the second begins.
    """

    def __init__(self, first: Activation, second: Activation, at: int) -> None:
        self.first, self.second, self.at = first, second, at
        self.value_slack = max(first.value_slack, second.value_slack)

    def value(self, z: Tensor) -> Tensor:
        a, b = z[:, : self.at], z[:, self.at :]
        return torch.cat([self.first.value(a), self.second.value(b)], dim=1)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        parts = [f.interval(*ends) for f, ends in self._each(lower, upper)]
        return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts], dim=1)

    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        return _joined([f.slope_range(low, high, closed) for f, (low, high) in self._each(lower, upper)])

    def secant_range(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        return _joined([f.secant_range(*ends) for f, ends in self._each(anchor, lower, upper)])

    def outside(self, lower: Tensor, upper: Tensor) -> str:
        return next((r for f, ends in self._each(lower, upper) if (r := f.outside(*ends))), "")

    def pieces(self, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> list[Piece]:
        found = []
        for at, (f, (mine, low, high, least, most)) in enumerate(
            self._each(anchor, lower, upper, slopes.low, slopes.high)
        ):
            nothing = torch.zeros_like(anchor[:, self.at :] if at == 0 else anchor[:, : self.at])
            gone = (nothing, nothing, nothing + 1, nothing - 1)  # an empty piece
            for piece in f.pieces(mine, low, high, SlopeRange(least, most)):
                parts = (t.expand_as(mine) for t in (piece.slope, piece.offset, piece.low, piece.high))
                pairs = zip(parts, gone) if at == 0 else zip(gone, parts)
                found.append(Piece(*(torch.cat([a, b], dim=1) for a, b in pairs)))
        return found

    def parameters(self) -> tuple[Tensor, ...]:
        return (*self.first.parameters(), *self.second.parameters())

    def _each(self, *tensors: Tensor) -> list[tuple[Activation, list[Tensor]]]:
        halves = zip(*((t[:, : self.at], t[:, self.at :]) for t in tensors), strict=True)
        return [(f, list(h)) for f, h in zip((self.first, self.second), halves, strict=True)]


def _joined(parts: list[SlopeRange]) -> SlopeRange:
    return SlopeRange(torch.cat([p.low for p in parts], dim=1), torch.cat([p.high for p in parts], dim=1))
