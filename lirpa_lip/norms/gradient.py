"""Norms as differentiable functions of the map and the masks."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.norms.balance import balanced_map
from lirpa_lip.norms.kernels.autograd import masked_matmul
from lirpa_lip.norms.linear_map import DenseMap, LinearMap, MaskedMap
from lirpa_lip.norms.powers import times_power
from lirpa_lip.norms.result import NormResult
from lirpa_lip.precision import true_float32


def needs_gradient(masked: LinearMap) -> bool:
    """Whether a gradient is recorded for anything the map is made of."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in masked.tensors())


def differentiable(masked: LinearMap, result: NormResult, found: NormResult, exponent: Tensor | None) -> NormResult:
    """The result with ``upper`` and ``lower`` as functions of the tensors of the map.

    As ``d sigma = uᵀ (dA) v`` for a simple top singular value with unit vectors u and v, held fixed, the gradient of
    ``s = u . A v``, by one masked forward, is that of either value but for the factor ``value / s``; no graph goes
    through the iterations. Of a repeated value this is one subgradient. Where s is 0 the gradient is 0. Vectors
    which certificates left for later are found in the backward pass.

    Args:
        found: the result in units of ``2^exponent``.
        exponent: ``(B,)``, or ``None`` for zeros.
    """
    tensors = masked.tensors()
    lower, upper = _Norms.apply(masked, result, found, exponent, *tensors)
    return dataclasses.replace(result, lower=lower, upper=upper)


class _Norms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, masked: LinearMap, result: NormResult, found: NormResult, exponent: Tensor | None, *tensors: Tensor
    ):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        # the structure alone: tensors are kept where autograd watches over them
        ctx.masked, ctx.found, ctx.exponent = masked.detach(), found, exponent
        return result.lower.clone(), result.upper.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable  # a second derivative would need those of u and v
    def backward(ctx: Any, of_lower: Tensor | None, of_upper: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        nothing = (None, None, None, None)
        if of_lower is None and of_upper is None:
            return *nothing, *[None] * len(tensors)
        # not kept: a graph that is used again is rare, and one that is not may live long
        with torch.no_grad(), true_float32() if ctx.found.certified else nullcontext():
            vectors = ctx.found.vectors()
        with torch.enable_grad():
            # aliases: some of the tensors may be made of others, which is for the graph outside to follow
            tensors = tuple(tensor.view_as(tensor) for tensor in tensors)
            wanted = [tensor for tensor, wants in zip(tensors, ctx.needs_input_grad[4:], strict=True) if wants]
            masked = _with_tensors(ctx.masked, tensors)
            s, weight = _linear(masked, vectors, ctx.found, ctx.exponent, of_lower, of_upper)
            gradients = iter(torch.autograd.grad(s, wanted, weight, allow_unused=True))
        return *nothing, *(next(gradients) if wants else None for wants in ctx.needs_input_grad[4:])


def _with_tensors(masked: LinearMap, tensors: tuple[Tensor, ...]) -> LinearMap:
    """The map made of these tensors, in the order of ``masked.tensors()``."""
    left = iter(tensors)

    def replacement(_: Tensor) -> Tensor:
        return next(left)

    return masked.rebuild(replacement, replacement)


def _linear(
    masked: LinearMap,
    vectors: tuple[Tensor, Tensor],
    found: NormResult,
    exponent: Tensor | None,
    of_lower: Tensor | None,
    of_upper: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``s = u . A v`` with its graph, of the map or the balanced one, and its weight: ``sum_x dx x / s``, ``(B,)``."""
    if exponent is not None:
        masked, _ = balanced_map(masked, len(found.lower))
    left, right = (vector.to(masked.dtype) for vector in vectors)
    s = (left * _image(masked, right)).flatten(1).sum(1)
    with torch.no_grad():
        total = torch.zeros_like(s)
        for value, outer in ((found.lower, of_lower), (found.upper, of_upper)):
            if outer is not None:
                total = total + torch.where(value.isfinite(), value.to(s.dtype) * outer.to(s.dtype), 0)
        alive = s > 0
        weight = torch.where(alive, total / torch.where(alive, s, 1), 0)
        if exponent is None:
            return s, weight
        limit = torch.finfo(weight.dtype).max  # finite, since it meets zeros
        return s, times_power(weight, exponent).clamp(-limit, limit)


def _image(masked: LinearMap, right: Tensor) -> Tensor:
    if isinstance(masked, MaskedMap) and isinstance(masked.map, DenseMap):
        return masked_matmul(right, masked.map.weight, masked.mask_in, masked.mask_out)
    return masked.forward(right)
