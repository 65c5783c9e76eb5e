"""Products, sums and maskings of linear maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.maps.base import LinearMap, TensorFn
from lirpa_lip.norms.maps.diagonal import DiagonalMap
from lirpa_lip.norms.maps.fused import fused
from lirpa_lip.norms.powers import times_power


def _common_batch(maps: Sequence[LinearMap]) -> int | None:
    sizes = {m.batch_size for m in maps if m.batch_size is not None}
    if len(sizes) > 1:
        raise ShapeError(f"maps of different batch sizes cannot be combined: {sorted(sizes)}.")
    return next(iter(sizes), None)


class _Combination(LinearMap):
    """What products and sums share: parts that are moved, detached and selected one by one."""

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        if not maps:
            raise ShapeError(f"{type(self).__name__} needs at least one map.")
        self.maps = tuple(maps)
        self.batch_size = _common_batch(maps)
        self.structural = all(m.structural for m in maps)
        self.nonnegative = all(m.nonnegative for m in maps)

    @property
    def _carrier(self) -> LinearMap:
        return next((m for m in self.maps if not m.structural), self.maps[0])

    @property
    def dtype(self) -> torch.dtype:
        return self._carrier.dtype

    @property
    def device(self) -> torch.device:
        return self._carrier.device

    def _of(self, maps: Sequence[LinearMap]) -> LinearMap:
        """The same combination of other parts."""
        return type(self)(maps)

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> LinearMap:
        return self._of([m.rebuild(shared, per_sample) for m in self.maps])

    def support(self) -> LinearMap | None:
        parts = [m.support() for m in self.maps]
        known = [part for part in parts if part is not None]
        return self._of(known) if len(known) == len(parts) else None

    def tensors(self) -> list[Tensor]:
        return [tensor for m in self.maps for tensor in m.tensors()]

    # Each part is asked by its own method, since a part may know better than `rebuild` (structural maps do).
    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LinearMap:
        return self._of([m.to(dtype, device) for m in self.maps])

    def detach(self) -> LinearMap:
        return self._of([m.detach() for m in self.maps])

    def select(self, index: Tensor) -> LinearMap:
        return self if self.batch_size is None else self._of([m.select(index) for m in self.maps])


class ComposedMap(_Combination):
    """The product of maps, applied right to left: ``ComposedMap([A, B])`` is ``x -> A (B x)``.

    ``|AB| = |A||B|`` and ``(AB)^2 = A^2 B^2`` hold entry by entry where every entry of AB is a single product: A has
    at most one nonzero per row, or B at most one per column. ``|AB| = AB`` also where neither has a negative entry.
    """

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        super().__init__(maps)
        for left, right in pairwise(maps):
            if left.in_shape != right.out_shape:
                raise ShapeError(
                    f"ComposedMap: {type(left).__name__} takes {tuple(left.in_shape)}, "
                    f"but {type(right).__name__} gives {tuple(right.out_shape)}."
                )
        self.in_shape, self.out_shape = maps[-1].in_shape, maps[0].out_shape
        self.row_monomial = all(m.row_monomial for m in maps)
        self.column_monomial = all(m.column_monomial for m in maps)
        self.coisometric = all(m.coisometric for m in maps)

    def forward(self, x: Tensor) -> Tensor:
        for m in reversed(self.maps):
            x = m.forward(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for m in self.maps:
            y = m.adjoint(y)
        return y

    def balanced(self) -> tuple[LinearMap, Tensor]:
        parts, found = zip(*(m.balanced() for m in self.maps), strict=True)
        return self._of(parts), torch.stack(torch.broadcast_tensors(*found)).sum(0)

    def _single_products(self) -> bool:
        """Whether each entry of the product is one product of entries: all maps but one can stand aside.

        Maps left of the exception need at most one nonzero per row, maps right of it at most one per column.
        """
        n = len(self.maps)
        rows = [all(m.row_monomial for m in self.maps[:i]) for i in range(n)]
        columns = [all(m.column_monomial for m in self.maps[i + 1 :]) for i in range(n)]
        return any(r and c for r, c in zip(rows, columns, strict=True))

    def abs(self) -> LinearMap:
        if self.nonnegative:
            return self
        if not self._single_products():
            raise NotImplementedError("|A| of a composition needs all maps but one to have one nonzero per row.")
        return ComposedMap([m.abs() for m in self.maps])

    def row_norms(self, scale: Tensor | None = None) -> Tensor:
        if scale is None and self.maps[-1].orthogonal and len(self.maps) > 1:
            return ComposedMap(self.maps[:-1]).row_norms()  # rows that are turned are as long as before
        shorter = fused(self.maps)
        return super().row_norms(scale) if len(shorter) == len(self.maps) else ComposedMap(shorter).row_norms(scale)

    def square(self) -> LinearMap:
        if not self._single_products():
            raise NotImplementedError("A^2 of a composition needs all maps but one to have one nonzero per row.")
        return ComposedMap([m.square() for m in self.maps])


class SumMap(_Combination):
    """The sum of maps: ``x -> sum_k A_k x``."""

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        super().__init__(maps)
        shapes = {(tuple(m.in_shape), tuple(m.out_shape)) for m in maps}
        if len(shapes) > 1:
            raise ShapeError(f"SumMap: all maps need the same shapes, got {sorted(shapes)}.")
        self.in_shape, self.out_shape = maps[0].in_shape, maps[0].out_shape

    def forward(self, x: Tensor) -> Tensor:
        total = self.maps[0].forward(x)
        for m in self.maps[1:]:
            total = total + m.forward(x)
        return total

    def adjoint(self, y: Tensor) -> Tensor:
        total = self.maps[0].adjoint(y)
        for m in self.maps[1:]:
            total = total + m.adjoint(y)
        return total

    def balanced(self) -> tuple[LinearMap, Tensor]:
        parts, found = zip(*(m.balanced() for m in self.maps), strict=True)
        stacked = torch.stack(torch.broadcast_tensors(*found))
        largest = stacked.amax(0)
        return SumMap([scaled_map(part, e - largest) for part, e in zip(parts, stacked, strict=True)]), largest


def scaled_map(part: LinearMap, exponent: Tensor) -> LinearMap:
    """``2^k A``, k ``()`` or ``(B,)``, by a scale of its outputs."""
    if not bool((exponent != 0).any()):
        return part
    ones = torch.ones(*exponent.shape, *part.out_shape, dtype=torch.float64, device=part.device)
    return ComposedMap([DiagonalMap(times_power(ones, exponent), part.out_shape), part])


class MaskedMap(ComposedMap):
    """``diag(mask_out) A diag(mask_in)``.

    Args:
        map: the map A.
        mask_in, mask_out: ``(B, *in_shape)`` and ``(B, *out_shape)``, scales of each sample, or ``None`` for ones.
    """

    def __init__(self, map: LinearMap, mask_in: Tensor | None = None, mask_out: Tensor | None = None) -> None:
        for name, mask, shape in (("mask_in", mask_in, map.in_shape), ("mask_out", mask_out, map.out_shape)):
            if mask is not None and mask.shape[1:] != shape:
                raise ShapeError(f"{name} has shape {tuple(mask.shape)}, expected (B, *{tuple(shape)}).")
        left = [] if mask_out is None else [DiagonalMap(mask_out, map.out_shape)]
        right = [] if mask_in is None else [DiagonalMap(mask_in, map.in_shape)]
        super().__init__([*left, map, *right])
        self.map, self.mask_in, self.mask_out = map, mask_in, mask_out
        self.cheap_entries = map.cheap_entries

    def _of(self, maps: Sequence[LinearMap]) -> MaskedMap:
        parts = list(maps)
        left = parts.pop(0).tensors()[0] if self.mask_out is not None else None
        right = parts.pop().tensors()[0] if self.mask_in is not None else None
        return MaskedMap(parts[0], right, left)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        if (self.batch_size or 1) != 1:
            raise ShapeError("entries() needs one map: select a single sample first.")
        matrix = self.map.entries(rows, columns)
        if self.mask_out is not None:
            matrix = self.mask_out.reshape(-1)[rows].unsqueeze(1) * matrix
        return matrix if self.mask_in is None else matrix * self.mask_in.reshape(-1)[columns]
