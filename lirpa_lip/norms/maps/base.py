"""The interface of a linear map: all a norm solver may rely on."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.powers import exponents, times_power

TensorFn = Callable[[Tensor], Tensor]

#: Elements a temporary of `dense` and `row_norms` may hold (256 MiB in float64).
CHUNK_ELEMENTS = 1 << 25


class LinearMap(ABC):
    """A linear map ``A : R^in_shape -> R^out_shape``, applied to batches of vectors.

    Attributes:
        in_shape, out_shape: shapes of one vector, without the batch axis.
        batch_size: ``None`` if all samples share one map; ``B`` if sample ``b`` of a batch has a map of its own.
        structural: the map holds no tensors, so that its dtype and device are only nominal.
        row_monomial, column_monomial: at most one nonzero per row, or column: then entrywise functions pass through
            a composition (see `ComposedMap`).
        nonnegative: no entry is negative.
        orthogonal: the adjoint is the inverse.
        coisometric: ``A Aᵀ = 1``, to rounding.
        homogeneous: the map is proportional to its one tensor, and an entry is 0 where the tensor's is.
        cheap_entries: `entries` costs about as much as writing its result.
        multiply_adds: multiplications in one application of a map with cheap entries.
        most_terms: products an entry of ``A x`` or of ``Aᵀ y`` is summed from, at most; 0 where that is not known.

    A subclass gives `forward`, `adjoint` and `rebuild`; the rest follows, if slowly. The first two may err by rounding,
    relative to the norm of A, and on unit vectors by underflow of no more than 2^-600.
    """

    batch_size: int | None = None
    structural: bool = False
    row_monomial: bool = False
    column_monomial: bool = False
    nonnegative: bool = False
    orthogonal: bool = False
    coisometric: bool = False
    homogeneous: bool = False
    cheap_entries: bool = False
    multiply_adds: int = 0
    most_terms: int = 0

    in_shape: torch.Size
    out_shape: torch.Size

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``(B, *in_shape) -> (B, *out_shape)``, differentiable in x and in the map's tensors."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """``(B, *out_shape) -> (B, *in_shape)``, the transpose; differentiable likewise."""

    @abstractmethod
    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> LinearMap:
        """The same map with each tensor t replaced by ``shared(t)``, or ``per_sample(t)`` where t has a batch axis."""

    def tensors(self) -> list[Tensor]:
        """The tensors the map is made of (weights, scales)."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.rebuild(keep, keep)
        return found

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LinearMap:
        """The map in another precision or on another device; gradients flow back to the original tensors."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device or tensor.device, dtype=dtype or tensor.dtype)

        return self.rebuild(move, move)

    def detach(self) -> LinearMap:
        """The same map, cut from the autograd graph."""
        return self.rebuild(Tensor.detach, Tensor.detach)

    def select(self, index: Tensor) -> LinearMap:
        """The maps of the samples named by a 1-D index tensor (repeats allowed); a shared map returns itself."""
        if self.batch_size is None:
            return self
        return self.rebuild(lambda tensor: tensor, lambda tensor: tensor[index])

    def balanced(self) -> tuple[LinearMap, Tensor]:
        """``A'`` and e with ``A = 2^e A'``, e ``()`` or ``(B,)``: no factor of A' has values far above one.

        A map that does not know its factors returns itself. It is for maps in float64.
        """
        if not self.homogeneous:
            return self, torch.zeros((), dtype=torch.long, device=self.device)
        (tensor,) = self.tensors()
        size = tensor.detach().abs()
        e = exponents(size.amax() if self.batch_size is None else size.flatten(1).amax(1))

        def scaled(tensor: Tensor) -> Tensor:
            return times_power(tensor, -e)

        return self.rebuild(scaled, scaled), e

    def support(self) -> LinearMap | None:
        """A map without negative entries that has none where A has one, of the size of the number of ways through A.

        Where it maps ones to 0, A is 0, whatever underflows; ``None`` where that is not known.
        """
        if self.nonnegative:
            return self
        return self.rebuild(_nonzero, _nonzero) if self.homogeneous else None

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Range of ``A x`` for ``low <= x <= high``, entry by entry, to rounding."""
        centre, width = self.forward((low + high) / 2), self.abs().forward((high - low) / 2)
        return centre - width, centre + width

    @property
    def in_numel(self) -> int:
        return math.prod(self.in_shape)

    @property
    def out_numel(self) -> int:
        return math.prod(self.out_shape)

    def dense(self) -> Tensor:
        """The matrix, ``(out_numel, in_numel)``, or ``(B, out_numel, in_numel)`` for a map per sample."""
        by_rows = self.out_numel <= self.in_numel
        count = self.out_numel if by_rows else self.in_numel
        slabs = [self._slab(index, by_rows) for index in self._chunks(count)]
        matrix = torch.cat(slabs, dim=1)
        matrix = matrix if by_rows else matrix.mT
        return matrix if self.batch_size is not None else matrix.squeeze(0)

    def abs(self) -> LinearMap:
        """The map with entries ``|a_ij|``."""
        if self.nonnegative:
            return self
        raise NotImplementedError(f"{type(self).__name__} has no access to its entries: |A| is not available.")

    def square(self) -> LinearMap:
        """The map with entries ``a_ij^2``."""
        raise NotImplementedError(f"{type(self).__name__} has no access to its entries: A^2 is not available.")

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The sub-matrix ``(len(rows), len(columns))`` at flat indices; only of a shared map or a batch of one."""
        if (self.batch_size or 1) != 1:
            raise ShapeError("entries() needs one map: select a single sample first.")
        by_rows = len(rows) <= len(columns)
        kept, other = (rows, columns) if by_rows else (columns, rows)
        slabs = [torch.zeros(0, len(other), dtype=self.dtype, device=self.device)]
        slabs += [self._slab(kept[part], by_rows)[0][:, other] for part in self._chunks(len(kept)) if len(part)]
        matrix = torch.cat(slabs)
        return matrix if by_rows else matrix.mT

    def row_norms(self, scale: Tensor | None = None) -> Tensor:
        """Euclidean norms of the rows of ``A diag(scale)``, shape ``(B or 1, *out_shape)``, rounded to nearest.

        Computed as ``sqrt(A^2 scale^2)``, or row by row through the adjoint where entries are not available.

        Args:
            scale: ``(B, *in_shape)`` or ``None`` for ones.
        """
        if scale is None:
            scale = torch.ones(self.batch_size or 1, *self.in_shape, dtype=self.dtype, device=self.device)
        if scale.shape[1:] != self.in_shape:
            raise ShapeError(f"row_norms: scale has shape {tuple(scale.shape)}, expected (B, *{tuple(self.in_shape)}).")
        try:
            squares = self.square().forward(scale.square())
        except NotImplementedError:
            squares = self._row_squares_by_chunks(scale)
        # Rounding may leave a tiny negative value in a convolution; the square root has no gradient at 0.
        positive = squares > 0
        return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)

    def _row_squares_by_chunks(self, scale: Tensor) -> Tensor:
        weights = scale.square().flatten(1)
        slabs = []
        for index in self._chunks(self.out_numel):
            squares = self._slab(index, by_rows=True).square()
            slabs.append((squares @ weights.unsqueeze(-1)).squeeze(-1))
        return torch.cat(slabs, dim=1).reshape(-1, *self.out_shape)

    def _chunks(self, count: int) -> list[Tensor]:
        width = max(self.in_numel, self.out_numel) * (self.batch_size or 1)
        return list(torch.arange(count, device=self.device).split(max(1, CHUNK_ELEMENTS // max(1, width))))

    def _slab(self, index: Tensor, by_rows: bool) -> Tensor:
        """Rows (or columns) at flat indices, as ``(B or 1, len(index), in_numel or out_numel)``."""
        shape = self.out_shape if by_rows else self.in_shape
        basis = torch.zeros(len(index), math.prod(shape), dtype=self.dtype, device=self.device)
        basis[torch.arange(len(index), device=self.device), index] = 1
        apply_name = "adjoint" if by_rows else "forward"
        if self.batch_size is None:
            return getattr(self, apply_name)(basis.reshape(-1, *shape)).flatten(1).unsqueeze(0)
        samples = torch.arange(self.batch_size, device=self.device).repeat_interleave(len(index))
        stacked = basis.repeat(self.batch_size, 1).reshape(-1, *shape)
        rows = getattr(self.select(samples), apply_name)(stacked)
        return rows.reshape(self.batch_size, len(index), -1)


class StructuralMap(LinearMap):
    """A map without tensors: what it does follows from shapes, and its dtype and device are what vectors are meant for.

    A subclass gives `forward` and `adjoint`, and sets ``_dtype`` and ``_device``.
    """

    structural = True
    _dtype: torch.dtype
    _device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> LinearMap:
        return self

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LinearMap:
        moved = copy.copy(self)
        moved._dtype, moved._device = dtype or self._dtype, torch.device(device or self._device)
        return moved


def _nonzero(tensor: Tensor) -> Tensor:
    return (tensor.detach() != 0).to(tensor.dtype)
