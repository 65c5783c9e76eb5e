"""Norms as differentiable functions of the map and the masks."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lirpa_lip.norms.kernels.autograd import masked_matmul
from lirpa_lip.norms.linear_map import DenseMap, LinearMap, MaskedMap
from lirpa_lip.norms.result import NormResult


def needs_gradient(masked: LinearMap) -> bool:
    """Whether a gradient is recorded for anything the map is made of."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in masked.tensors())


def differentiable(masked: LinearMap, result: NormResult) -> NormResult:
    """The result with ``upper`` and ``lower`` multiplied by ``s / s.detach()``, ``s = left . A right``.

    As ``d sigma = uᵀ (dA) v`` for a simple top singular value with unit vectors u and v, held fixed, one masked forward
    gives the gradient, and no graph goes through the iterations. Of a repeated value this is one subgradient. The
    factor is exactly one, so the values, bounds included, do not change. Where s is 0 the gradient is 0.
    """
    s = (result.left * _image(masked, result.right)).flatten(1).sum(1)
    alive = s.detach() > 0
    factor = torch.where(alive, s, 1.0) / torch.where(alive, s.detach(), 1.0)
    return dataclasses.replace(result, lower=result.lower * factor, upper=result.upper * factor)


def _image(masked: LinearMap, right: Tensor) -> Tensor:
    if isinstance(masked, MaskedMap) and isinstance(masked.map, DenseMap):
        return masked_matmul(right, masked.map.weight, masked.mask_in, masked.mask_out)
    return masked.forward(right)
