"""A matrix as a linear map."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.maps.base import LinearMap, TensorFn


class DenseMap(LinearMap):
    """``x -> W x`` for one matrix W shared by all samples.

    Args:
        weight: ``(out, in)``.
    """

    cheap_entries = homogeneous = True

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 2 or 0 in weight.shape:
            raise ShapeError(f"DenseMap needs a non-empty (out, in) matrix, got shape {tuple(weight.shape)}.")
        self.weight = weight
        self.out_shape, self.in_shape = torch.Size([weight.shape[0]]), torch.Size([weight.shape[1]])
        self.multiply_adds = weight.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.weight

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> DenseMap:
        return DenseMap(shared(self.weight))

    def dense(self) -> Tensor:
        return self.weight

    def abs(self) -> DenseMap:
        return DenseMap(self.weight.abs())

    def square(self) -> DenseMap:
        return DenseMap(self.weight.square())

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.weight[rows][:, columns]
