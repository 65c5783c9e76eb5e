"""The masked product as a differentiable function, whose backward passes skip empty tiles as its forward pass does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lirpa_lip.norms.kernels import reference
from lirpa_lip.norms.kernels.registry import backend


def masked_matmul(x: Tensor, weight: Tensor, mask_in: Tensor | None, mask_out: Tensor | None) -> Tensor:
    """``mask_out * ((mask_in * x) @ weight.T)``, differentiable in all four.

    Args:
        x, mask_in: ``(B, in)``.
        weight: ``(out, in)``.
        mask_out: ``(B, out)``.
    """
    if backend(x.device) is reference:
        return reference.masked_matmul(x, weight, mask_in, mask_out)
    return _MaskedMatmul.apply(x, weight, mask_in, mask_out)


class _MaskedMatmul(torch.autograd.Function):
    """With ``p = (mask_in x) Wᵀ``, ``y = mask_out p`` and ``q = (mask_out g) W`` for the incoming gradient g:

    ``dx = mask_in q``, ``dmask_in = x q``, ``dmask_out = g p``, ``dW = (mask_out g)ᵀ (mask_in x)``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask_in: Tensor | None, mask_out: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, mask_in, mask_out)
        return backend(x.device).masked_matmul(x, weight, mask_in, mask_out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask_in, mask_out = ctx.saved_tensors
        wants = ctx.needs_input_grad
        product = backend(x.device).masked_matmul
        found: list[Tensor | None] = [None, None, None, None]
        if wants[0] or wants[2]:
            # The gradient of mask_in does not vanish where the mask does, so that it cannot be skipped.
            q = product(gradient, weight.mT, mask_out, None if wants[2] else mask_in)
            if wants[2]:
                found[2] = x * q
                q = q if mask_in is None else q * mask_in
            found[0] = q if wants[0] else None
        if wants[1]:
            outgoing = gradient if mask_out is None else gradient * mask_out
            found[1] = outgoing.mT @ (x if mask_in is None else x * mask_in)
        if wants[3]:
            found[3] = gradient * product(x, weight, mask_in, None)
        return tuple(found)
