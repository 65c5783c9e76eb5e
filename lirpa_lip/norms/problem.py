"""One batch of masked operators, checked and made ready for a solver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError
from lirpa_lip.norms.linear_map import LinearMap, MaskedMap


@dataclass(frozen=True)
class Problem:
    """The operators ``A_b = diag(mask_out[b]) A diag(mask_in[b])``, detached, in one precision.

    Attributes:
        operator: the masked map.
        size: number of samples B.
        mask_in, mask_out: ``(B, *shape)`` or ``None``, as they entered.
    """

    operator: LinearMap
    size: int
    mask_in: Tensor | None
    mask_out: Tensor | None

    @property
    def on_input(self) -> bool:
        """Whether AᵀA, rather than AAᵀ, is the smaller of the two Gram operators."""
        return self.operator.in_numel <= self.operator.out_numel

    @property
    def numel(self) -> int:
        """Length of the vectors the smaller Gram operator acts on."""
        return min(self.operator.in_numel, self.operator.out_numel)

    def gram(self, x: Tensor) -> Tensor:
        """The smaller Gram operator on flat vectors, ``(B, numel) -> (B, numel)``."""
        operator = self.operator
        if self.on_input:
            return operator.adjoint(operator.forward(x.reshape(-1, *operator.in_shape))).flatten(1)
        return operator.forward(operator.adjoint(x.reshape(-1, *operator.out_shape))).flatten(1)

    def active(self) -> Tensor:
        """``(B, numel)`` or ``(1, numel)``, boolean: coordinates which the smaller Gram operator does not annihilate."""
        mask = self.mask_in if self.on_input else self.mask_out
        if mask is None:
            return torch.ones(1, self.numel, dtype=torch.bool, device=self.operator.device)
        return mask.flatten(1) != 0

    def select(self, index: Tensor) -> Problem:
        """The sub-batch at a 1-D index tensor."""
        masks = [None if mask is None else mask[index] for mask in (self.mask_in, self.mask_out)]
        return Problem(self.operator.select(index), len(index), *masks)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same operators in another precision."""
        masks = [None if mask is None else mask.to(dtype) for mask in (self.mask_in, self.mask_out)]
        return Problem(self.operator.to(dtype), self.size, *masks)


def prepare(linear_map: LinearMap, mask_in: Tensor | None, mask_out: Tensor | None) -> tuple[LinearMap, Problem]:
    """Check the input; return the masked map with its graph, and the detached problem.

    Raises:
        ShapeError: a mask does not fit the map, batch sizes differ, or the map is empty.
        NonFiniteError: weights or masks hold NaN or infinity.
        ConfigError: a mask is negative.
    """
    if not isinstance(linear_map, LinearMap):
        raise ShapeError(f"expected a LinearMap, got {type(linear_map).__name__}; wrap a matrix as DenseMap(weight).")
    if 0 in (math.prod(linear_map.in_shape), math.prod(linear_map.out_shape)):
        raise ShapeError(f"the map {tuple(linear_map.in_shape)} -> {tuple(linear_map.out_shape)} is empty.")
    if isinstance(linear_map, MaskedMap) and linear_map.batch_size is not None and mask_in is None and mask_out is None:
        linear_map, mask_in, mask_out = linear_map.map, linear_map.mask_in, linear_map.mask_out
    size = _batch_size(linear_map, mask_in, mask_out)
    mask_in = _checked_mask("mask_in", mask_in, linear_map.in_shape, size, linear_map)
    mask_out = _checked_mask("mask_out", mask_out, linear_map.out_shape, size, linear_map)
    if not all(bool(tensor.isfinite().all()) for tensor in linear_map.tensors()):
        raise NonFiniteError("the weights of a linear map")
    masked = linear_map if mask_in is None and mask_out is None else MaskedMap(linear_map, mask_in, mask_out)
    bare = [None if mask is None else mask.detach() for mask in (mask_in, mask_out)]
    return masked, Problem(masked.detach(), size, *bare)


def _batch_size(linear_map: LinearMap, mask_in: Tensor | None, mask_out: Tensor | None) -> int:
    given = {"map": linear_map.batch_size}
    given |= {name: mask.shape[0] for name, mask in (("mask_in", mask_in), ("mask_out", mask_out)) if mask is not None}
    sizes = {size for size in given.values() if size is not None}
    if len(sizes - {1}) > 1 or (linear_map.batch_size == 1 and len(sizes) > 1):
        raise ShapeError(f"batch sizes differ: {given}.")
    return max(sizes, default=1)


def _checked_mask(name: str, mask: Tensor | None, shape: torch.Size, size: int, linear_map: LinearMap) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape[1:] != shape:
        raise ShapeError(f"{name} has shape {tuple(mask.shape)}, expected (B, *{tuple(shape)}).")
    if not bool(mask.isfinite().all()):
        raise NonFiniteError(name)
    if bool((mask < 0).any()):
        raise ConfigError(f"{name} has negative entries; a mask is 0, 1 or a non-negative scale.")
    return mask.to(linear_map.dtype).expand(size, *shape)
