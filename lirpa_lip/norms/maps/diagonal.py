"""Entrywise scaling, the identity and changes of shape: maps that keep the flat index."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.maps.base import LinearMap, StructuralMap, TensorFn


class DiagonalMap(LinearMap):
    """``x -> scale * x``.

    Args:
        scale: ``(*in_shape)``, shared by all samples, or ``(B, *in_shape)``, one per sample.
        in_shape: shape of one vector.
    """

    row_monomial = column_monomial = True
    cheap_entries = homogeneous = True

    def __init__(self, scale: Tensor, in_shape: Sequence[int]) -> None:
        self.in_shape = self.out_shape = torch.Size(in_shape)
        if scale.shape != self.in_shape and scale.shape[1:] != self.in_shape:
            raise ShapeError(
                f"DiagonalMap: scale has shape {tuple(scale.shape)}; give {tuple(in_shape)} or (B, *{tuple(in_shape)})."
            )
        self.scale = scale
        self.multiply_adds = self.in_numel
        self.batch_size = None if scale.ndim == len(self.in_shape) else scale.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.scale

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> DiagonalMap:
        fn = shared if self.batch_size is None else per_sample
        return DiagonalMap(fn(self.scale), self.in_shape)

    def abs(self) -> DiagonalMap:
        return DiagonalMap(self.scale.abs(), self.in_shape)

    def square(self) -> DiagonalMap:
        return DiagonalMap(self.scale.square(), self.in_shape)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        if (self.batch_size or 1) != 1:
            raise ShapeError("entries() needs one map: select a single sample first.")
        return self.scale.reshape(-1)[rows].unsqueeze(1) * (rows.unsqueeze(1) == columns)


class ReshapeMap(StructuralMap):
    """``x -> x.reshape(out_shape)`` for each sample."""

    row_monomial = column_monomial = True
    nonnegative = cheap_entries = orthogonal = coisometric = True

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.in_shape, self.out_shape = torch.Size(in_shape), torch.Size(out_shape)
        if math.prod(in_shape) != math.prod(out_shape):
            raise ShapeError(f"ReshapeMap: {tuple(in_shape)} and {tuple(out_shape)} differ in element count.")
        self._dtype = dtype or torch.get_default_dtype()
        self._device = torch.device(device or "cpu")

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.reshape(-1, *self.in_shape)

    def square(self) -> LinearMap:
        return self

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (rows.unsqueeze(1) == columns).to(self._dtype)


class IdentityMap(ReshapeMap):
    """``x -> x``."""

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(shape, shape, dtype, device)
