"""Pairwise sorting as rotation, absolute value, rotation.

With s = (x + y)/√2 and d = (x − y)/√2, the pair (max, min) is ((s + |d|)/√2, (s − |d|)/√2): the same rotation applied
to (s, |d|). So MaxMin (and, by tournaments of maxima, max pooling: `tournament.py`) needs no rule of its own: an
unordered pair is one neuron of an absolute value with uncertain slope, and its bounds are bounds of a difference of two
rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lirpa_lip.activations.base import SortedInput
from lirpa_lip.activations.kinked_functions import clip_half, fold_last
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.maps.base import StructuralMap
from lirpa_lip.norms.maps.fused import ChannelMap

HALF = 1 / math.sqrt(2)
_TURN = (HALF, HALF, HALF, -HALF)


class PairMap(StructuralMap, ChannelMap):
    """The same 2×2 matrix on every pair ``(x_c, x_{c + h})`` along the first axis, h half of it, rounded down.

    Of an odd axis the last entry is left as it is, and comes between the first results and the second ones:
    ``(x, y, rest) -> (a x + b y, rest, c x + d y)``.

    Args:
        matrix: its four entries, row by row.
        shape: of one sample.
    """

    most_terms = 2

    def __init__(
        self, matrix: tuple[float, float, float, float], shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.matrix = matrix
        self.in_shape = self.out_shape = torch.Size(shape)
        self._dtype, self._device = dtype, device
        self.orthogonal = self.coisometric = matrix == _TURN
        self._half, self._odd = shape[0] // 2, shape[0] % 2

    def _apply(self, first: Tensor, second: Tensor, matrix: Sequence[float]) -> tuple[Tensor, Tensor]:
        a, b, c, d = matrix
        if self.orthogonal:
            return a * (first + second), a * (first - second)
        return a * first + b * second, c * first + d * second

    def forward(self, x: Tensor) -> Tensor:
        first, second, *rest = x.split(self._sizes, dim=1)
        top, bottom = self._apply(first, second, self.matrix)
        return torch.cat([top, *rest, bottom], dim=1)

    @property
    def _sizes(self) -> list[int]:
        return [self._half, self._half, *[1] * self._odd]

    def adjoint(self, y: Tensor) -> Tensor:
        a, b, c, d = self.matrix
        top, *rest, bottom = y.split([self._half, *[1] * self._odd, self._half], dim=1)
        return torch.cat([*self._apply(top, bottom, (a, c, b, d)), *rest], dim=1)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if not self.orthogonal:
            return super().interval(low, high)
        (lx, ly, *lz), (ux, uy, *uz) = low.split(self._sizes, dim=1), high.split(self._sizes, dim=1)
        least = torch.cat([HALF * (lx + ly), *lz, HALF * (lx - uy)], dim=1)
        return least, torch.cat([HALF * (ux + uy), *uz, HALF * (ux - ly)], dim=1)

    def abs(self) -> PairMap:
        a, b, c, d = (abs(v) for v in self.matrix)
        return PairMap((a, b, c, d), self.in_shape, self._dtype, self._device)

    def square(self) -> PairMap:
        a, b, c, d = (v * v for v in self.matrix)
        return PairMap((a, b, c, d), self.in_shape, self._dtype, self._device)


def rotation(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> PairMap:
    """``(x, y) -> ((x + y)/√2, (x − y)/√2)``: orthogonal, and its own inverse."""
    return PairMap(_TURN, shape, dtype, device)


def _sorted_bounds(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Exact bounds of (max, min) from bounds of (x, y)."""
    low = _sorted(lower)
    return low, low if upper is lower else _sorted(upper)


def _sorted(pairs: Tensor) -> Tensor:
    x, y = pairs.chunk(2, dim=1)
    return torch.cat([torch.maximum(x, y), torch.minimum(x, y)], dim=1)


def emit_sort(builder: GraphBuilder, operator: str, parent: str, prefix: str) -> str:
    """Emits MaxMin of ``parent``; the names of its nodes begin with the prefix."""
    shape = builder.shape(parent)
    turn = rotation(shape, builder.dtype, builder.device)
    rotated = builder.affine(f"{prefix}:rotate", operator, [parent], [turn])
    fold = fold_last(shape, shape[0] // 2, builder.dtype, builder.device)
    folded = builder.activation(f"{prefix}:fold", operator, rotated, fold)
    return builder.affine(f"{prefix}:sorted", operator, [folded], [turn], shortcut=(parent, _sorted_bounds))


def emit_clipped_sort(
    builder: GraphBuilder, operator: str, parent: str, prefix: str, ends: tuple[Tensor, Tensor]
) -> str:
    """Emits MaxMin with the maxima clipped from above, the minima from below, at ``ends`` (per pair, or channel)."""
    sorted_name = emit_sort(builder, operator, parent, prefix)
    channels, *rest = builder.shape(sorted_name)
    activation = clip_half(*(_expand(end, torch.Size([channels // 2, *rest])) for end in ends))
    source = SortedInput(parent, f"{prefix}:fold", _pull_back)
    return builder.activation(f"{prefix}:clip", operator, sorted_name, activation, isometry_of=source)


def max_min(builder: GraphBuilder, traced: Traced) -> str:
    """MaxMin: the first half of the channels holds the maxima, the second half the minima."""
    return emit_sort(builder, traced.operator, traced.parent, traced.name)


def clipped_max_min(builder: GraphBuilder, traced: Traced) -> str:
    """MaxMin, then the maxima clipped from above and the minima from below."""
    high, low = (t.squeeze(0) for t in traced.bound.thresholds())
    return emit_clipped_sort(builder, traced.operator, traced.parent, traced.name, (high, low))


def _expand(threshold: Tensor, shape: torch.Size) -> Tensor:
    return threshold.reshape(*threshold.shape, *[1] * (len(shape) - threshold.ndim)).expand(shape)


def _pull_back(fold_centre: Tensor, fold_stable: Tensor, mask: Tensor) -> Tensor:
    """Mask of (x, y) from a mask of (max, min): permuted where the order is known, else the larger of the two.

    Where x ≥ y throughout, the maximum is x; a pair of unknown order is an orthogonal mix of both, so that
    ‖diag(a, b) O z‖ ≤ max(a, b) ‖z‖.
    """
    top, bottom = mask.chunk(2, dim=1)
    order, known = fold_centre.chunk(2, dim=1)[1], fold_stable.chunk(2, dim=1)[1]
    either = torch.maximum(top, bottom)
    x = torch.where(known, torch.where(order > 0, top, bottom), either)
    y = torch.where(known, torch.where(order > 0, bottom, top), either)
    return torch.cat([x, y], dim=1)
