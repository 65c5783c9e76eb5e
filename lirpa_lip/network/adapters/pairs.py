"""Pairwise sorting as rotation, absolute value, rotation.

With s = (x + y)/√2 and d = (x − y)/√2, the pair (max, min) is ((s + |d|)/√2, (s − |d|)/√2): the same rotation applied
to (s, |d|). So MaxMin (and, by tournaments of maxima, max pooling) needs no rule of its own: an unordered pair
is one neuron of an absolute value with uncertain slope, and its bounds are bounds of a difference of two rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, SortedInput
from lirpa_lip.activations.kinked_functions import clip_half, fold_half
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.network.node import Shortcut
from lirpa_lip.norms.linear_map import FunctionMap, LinearMap, ReshapeMap

_HALF = 1 / math.sqrt(2)
_TURN = (_HALF, _HALF, _HALF, -_HALF)


class PairMap(LinearMap):
    """The same 2×2 matrix on every pair ``(x_c, x_{c + C/2})`` along the first axis.

    Args:
        matrix: its four entries, row by row.
        shape: of one sample, with an even first axis.
    """

    structural = True

    def __init__(
        self, matrix: tuple[float, float, float, float], shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.matrix = matrix
        self.in_shape = self.out_shape = torch.Size(shape)
        self._dtype, self._device = dtype, device
        self.orthogonal = matrix == _TURN

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def _apply(self, x: Tensor, a: float, b: float, c: float, d: float) -> Tensor:
        first, second = x.chunk(2, dim=1)
        if self.orthogonal:
            return a * torch.cat([first + second, first - second], dim=1)
        return torch.cat([a * first + b * second, c * first + d * second], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(x, *self.matrix)

    def adjoint(self, y: Tensor) -> Tensor:
        a, b, c, d = self.matrix
        return self._apply(y, a, c, b, d)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if not self.orthogonal:
            return super().interval(low, high)
        (lx, ly), (ux, uy) = low.chunk(2, dim=1), high.chunk(2, dim=1)
        ends = torch.cat([lx + ly, lx - uy], dim=1), torch.cat([ux + uy, ux - ly], dim=1)
        return _HALF * ends[0], _HALF * ends[1]

    def rebuild(self, shared: Callable[[Tensor], Tensor], per_sample: Callable[[Tensor], Tensor]) -> PairMap:
        return self

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> PairMap:
        return PairMap(self.matrix, self.in_shape, dtype or self._dtype, device or self._device)

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


def _soft_bounds(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of (log(eˣ + eʸ), −log(e⁻ˣ + e⁻ʸ)), both monotone, rounded outwards; of a point its value."""
    low = _soft_pair(lower)
    if lower is upper:
        return low, low
    high, slack = _soft_pair(upper), 16 * torch.finfo(lower.dtype).eps
    return low - slack * (1 + low.abs()), high + slack * (1 + high.abs())


def _soft_pair(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return torch.cat([torch.logaddexp(first, second), -torch.logaddexp(-first, -second)], dim=1)


def emit_sort(builder: GraphBuilder, operator: str, parent: str, prefix: str, soft: Activation | None = None) -> str:
    """Emits MaxMin of ``parent``; the names of its nodes begin with the prefix.

    Args:
        soft: a smooth fold, of soft maxima and minima; None for the absolute value.
    """
    shape = builder.shape(parent)
    turn = rotation(shape, builder.dtype, builder.device)
    rotated = builder.affine(f"{prefix}:rotate", operator, [parent], [turn])
    fold = fold_half(shape, builder.dtype, builder.device) if soft is None else soft
    folded = builder.activation(f"{prefix}:fold", operator, rotated, fold)
    own = _sorted_bounds if soft is None else _soft_bounds
    return builder.affine(f"{prefix}:sorted", operator, [folded], [turn], shortcut=(parent, own))


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


def emit_pairwise_maximum(
    builder: GraphBuilder,
    traced: Traced,
    output: str,
    candidates: str,
    shape: torch.Size,
    *,
    shortcut: Shortcut,
    soft: Activation | None = None,
) -> str:
    """Maximum over the first axis of ``candidates (count, *rest)`` by rounds of pairwise maxima, then the given shape.

    A candidate without a partner goes straight to the next round. With ``soft`` in place of the identity and ``|·|`` it
    is a maximum of another kind: log-sum-exp.
    """
    round_, name = 0, candidates
    while builder.shape(name)[0] > 1:
        count = builder.shape(name)[0]
        even = count - count % 2
        like = {"dtype": builder.dtype, "device": builder.device, "monomial": True, "entries_nonnegative": True}
        prefix = f"{output}:{round_}"
        paired = name
        if count % 2:
            cut = FunctionMap(partial(_narrow, length=even), builder.shape(name), **like)
            paired = builder.affine(f"{prefix}:pairs", traced.operator, [name], [cut])
        ordered = emit_sort(builder, traced.operator, paired, prefix, soft)
        winners = FunctionMap(partial(_narrow, length=even // 2), builder.shape(ordered), **like)
        parents, maps = [ordered], [winners]
        if count % 2:
            rest = builder.shape(name)[1:]
            total = even // 2 + 1
            maps = [
                FunctionMap(partial(_first, length=even // 2, total=total), builder.shape(ordered), **like),
                FunctionMap(partial(_last, total=total), torch.Size([count, *rest]), **like),
            ]
            parents = [ordered, name]
        name = builder.affine(f"{prefix}:winners", traced.operator, parents, maps)
        round_ += 1
    back = ReshapeMap(builder.shape(name), shape, dtype=builder.dtype, device=builder.device)
    return builder.affine(output, traced.operator, [name], [back], shortcut=shortcut)


def _narrow(x: Tensor, length: int) -> Tensor:
    return x[:, :length]


def _first(x: Tensor, length: int, total: int) -> Tensor:
    kept = x[:, :length]
    return torch.cat([kept, torch.zeros_like(kept[:, :1]).expand(-1, total - length, *kept.shape[2:])], dim=1)


def _last(x: Tensor, total: int) -> Tensor:
    kept = x[:, -1:]
    return torch.cat([torch.zeros_like(kept).expand(-1, total - 1, *kept.shape[2:]), kept], dim=1)
