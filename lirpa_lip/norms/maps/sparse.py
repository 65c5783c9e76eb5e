"""A sparse matrix per sample, as one block diagonal matrix in compressed rows, and its transpose likewise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lirpa_lip.norms.maps.base import LinearMap, TensorFn


@dataclass(frozen=True)
class CompressedRows:
    """Block diagonal in compressed sparse rows: blocks of one height and one width, one after the other.

    Attributes:
        starts: ``(blocks * height + 1,)``, where each row's entries begin.
        columns: ``(entries,)``, counted from the first block's first column.
        values: ``(entries,)``.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    height: int
    width: int

    @property
    def blocks(self) -> int:
        return (len(self.starts) - 1) // self.height

    @cached_property
    def _matrix(self) -> Tensor:
        with warnings.catch_warnings():  # torch calls the layout a beta, once
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            shape = (self.blocks * self.height, self.blocks * self.width)
            return torch.sparse_csr_tensor(self.starts, self.columns, self.values, shape, check_invariants=False)

    def apply(self, x: Tensor) -> Tensor:
        """``(blocks, width) -> (blocks, height)``."""
        return (self._matrix @ x.reshape(-1)).reshape(-1, self.height)

    def dense(self) -> Tensor:
        """``(blocks, height, width)``."""
        row = torch.arange(len(self.starts) - 1, device=self.starts.device).repeat_interleave(self.starts.diff())
        matrix = self.values.new_zeros(self.blocks, self.height, self.width)
        matrix[row // self.height, row % self.height, self.columns.long() % self.width] = self.values
        return matrix

    def to(self, dtype: torch.dtype | None, device: torch.device | str | None) -> CompressedRows:
        device = device or self.values.device
        starts, columns = self.starts.to(device), self.columns.to(device)
        return CompressedRows(starts, columns, self.values.to(device, dtype), self.height, self.width)

    def select(self, index: Tensor) -> CompressedRows:
        """The blocks at a 1-D index tensor."""
        lengths = self.starts.diff().reshape(-1, self.height)[index]
        bounds, blocks = self.starts[:: self.height].tolist(), index.tolist()
        cut = [slice(bounds[block], bounds[block + 1]) for block in blocks]
        # slice by slice, since an index of every entry would take more than the entries
        columns = [self.columns[part] + (i - block) * self.width for i, (block, part) in enumerate(zip(blocks, cut))]
        values = torch.cat([self.values[part] for part in cut])
        return replace(self, starts=row_starts(lengths.flatten()), columns=torch.cat(columns), values=values)


def spread(first: Tensor, count: Tensor) -> Tensor:
    """``first[0], first[0] + 1, …`` (``count[0]`` of them), then the same from ``first[1]``, and so on."""
    ends = count.cumsum(0)
    within = torch.arange(int(ends[-1]) if len(ends) else 0, device=first.device)
    return within + (first - (ends - count)).repeat_interleave(count)


def row_starts(lengths: Tensor) -> Tensor:
    """Where rows of these lengths begin, and where the last one ends: int32, which sparse products are fastest with."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


class SparseMap(LinearMap):
    """A sparse matrix per sample.

    Args:
        rows: the matrices.
        transposed: their transposes; a product with a transpose would be several times slower.
    """

    def __init__(self, rows: CompressedRows, transposed: CompressedRows) -> None:
        self.rows, self.transposed, self.batch_size = rows, transposed, rows.blocks
        self.out_shape, self.in_shape = torch.Size([rows.height]), torch.Size([rows.width])
        self.multiply_adds = len(rows.values) // max(1, rows.blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.values.dtype

    @property
    def device(self) -> torch.device:
        return self.rows.values.device

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.transposed.apply(y)

    def dense(self) -> Tensor:
        return self.rows.dense()

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> SparseMap:
        # entries of all samples lie in one tensor, which has no batch axis: `select` cuts it itself
        return SparseMap(*(replace(half, values=shared(half.values)) for half in (self.rows, self.transposed)))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> SparseMap:
        return SparseMap(self.rows.to(dtype, device), self.transposed.to(dtype, device))

    def select(self, index: Tensor) -> SparseMap:
        return SparseMap(self.rows.select(index), self.transposed.select(index))
