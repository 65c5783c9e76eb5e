"""Sums of a few entries each: windows of an image, differences of pixels, selections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.maps.base import LinearMap, TensorFn


@dataclass(frozen=True)
class _Reads:
    """``y_i = Σ_k values[k, i] x[index[k, i]]``; where there are fewer terms the rest has value 0 and index ``size``.

    Attributes:
        index, values: ``(terms, out)``.
        size: of x.
        missing: whether there is any such rest.
    """

    index: Tensor
    values: Tensor
    size: int
    missing: bool

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, size) -> (B, out)``."""
        values = self.values.to(x.dtype)
        if self.missing:
            x = F.pad(x, (0, 1))  # rather than any entry times 0, which of an infinite one is NaN
        total = x[:, self.index[0]] * values[0]
        for index, value in zip(self.index[1:], values[1:]):
            total = total + x[:, index] * value
        return total

    def transposed(self) -> _Reads:
        size = self.size
        tap, row = (self.values != 0).nonzero().unbind(1)
        order = self.index[tap, row].argsort(stable=True)
        tap, row = tap[order], row[order]
        column = self.index[tap, row]
        count = torch.bincount(column, minlength=size)
        place = torch.arange(len(column), device=column.device) - (count.cumsum(0) - count)[column]
        most = max(1, int(count.max()) if size else 1)
        rows = self.index.shape[1]
        index = torch.full((most, size), rows, device=column.device)
        values = torch.zeros(most, size, dtype=self.values.dtype, device=column.device)
        index[place, column], values[place, column] = row, self.values[tap, row]
        return _Reads(index, values, rows, bool((index == rows).any()))


class IndexedMap(LinearMap):
    """``y_i = Σ_k coefficients[k, i] x[index[k, i]]``, with few terms in each row and in each column.

    Args:
        index: ``(terms, out)`` flat positions of the input.
        coefficients: ``(terms, out)``, constants; what reads one position twice in a row is added up.
        in_shape, out_shape: of one vector.
    """

    structural = True

    def __init__(
        self,
        index: Tensor,
        coefficients: Tensor,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.in_shape, self.out_shape = torch.Size(in_shape), torch.Size(out_shape)
        if index.shape != coefficients.shape or index.shape[1:] != (self.out_numel,):
            raise ShapeError(
                f"IndexedMap: index {tuple(index.shape)} and coefficients {tuple(coefficients.shape)} must both be "
                f"(terms, {self.out_numel})."
            )
        rows = _merged(index, coefficients, self.in_numel)
        self._rows, self._columns, self._dtype = rows, rows.transposed(), dtype or torch.get_default_dtype()
        self.row_monomial = bool(((rows.values != 0).sum(0) <= 1).all())
        self.column_monomial = len(self._columns.index) <= 1
        self.nonnegative = bool((rows.values >= 0).all())
        self.most_terms = max(len(rows.index), len(self._columns.index))

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._rows.index.device

    def forward(self, x: Tensor) -> Tensor:
        return self._rows(x.flatten(1)).reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._columns(y.flatten(1)).reshape(-1, *self.in_shape)

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> IndexedMap:
        return self

    def _copy(self, change: Callable[[_Reads], _Reads], **changed: Any) -> IndexedMap:
        made = IndexedMap.__new__(IndexedMap)
        made.__dict__.update(self.__dict__, _rows=change(self._rows), _columns=change(self._columns), **changed)
        return made

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> IndexedMap:
        def moved(reads: _Reads) -> _Reads:
            return replace(reads, index=reads.index.to(device), values=reads.values.to(device))

        same = device is None or torch.device(device) == self.device
        return self._copy((lambda reads: reads) if same else moved, _dtype=dtype or self._dtype)

    def _of_entries(self, change: TensorFn) -> IndexedMap:
        return self._copy(lambda reads: replace(reads, values=change(reads.values)), nonnegative=True)

    def abs(self) -> IndexedMap:
        return self if self.nonnegative else self._of_entries(torch.abs)

    def square(self) -> IndexedMap:
        return self._of_entries(torch.square)

    def support(self) -> IndexedMap:
        return self._of_entries(lambda values: (values != 0).to(values.dtype))


def _merged(index: Tensor, coefficients: Tensor, size: int) -> _Reads:
    """The same rows, in float64, each position read once: entrywise functions are then those of the entries."""
    index, values = index.clone(), coefficients.double().clone()
    for later in range(1, len(index)):
        for earlier in range(later):
            same = index[later] == index[earlier]
            values[earlier] += torch.where(same, values[later], 0.0)
            values[later] = torch.where(same, 0.0, values[later])
    nothing = values == 0
    return _Reads(torch.where(nothing, size, index), values, size, bool(nothing.any()))
