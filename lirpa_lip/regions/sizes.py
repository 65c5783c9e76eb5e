"""Norms and squares that are zero only of zero, whatever the scale."""

from __future__ import annotations

import torch
from torch import Tensor


def safe_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean norm along one axis, with gradient zero (not NaN) where it is zero.

    Where squares would underflow or overflow it is taken of numbers scaled by a power of two.
    """
    squares = x.square().sum(dim)
    positive = squares > 0
    norm = torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
    info = torch.finfo(x.dtype)
    doubtful = (squares < 1024 * info.tiny / info.eps) | (squares > info.max / 4)
    if not bool(doubtful.any()):
        return norm
    part = x.movedim(dim, -1)[doubtful]
    if part.shape[-1] == 0:
        return norm
    size = part.detach().abs().amax(-1, keepdim=True)
    usable = (size > 0) & torch.isfinite(size)
    if not bool(usable.any()):
        return norm
    # two steps, since neither a scale nor its inverse need be a number
    half = torch.frexp(size).exponent.div(2, rounding_mode="floor")
    one = torch.ones_like(size)
    first, second = (torch.ldexp(one, e) for e in (half, torch.frexp(size).exponent - half))
    part = torch.where(usable, part / first / second, 0.0)
    squares = part.square().sum(-1, keepdim=True)
    scaled = torch.where(usable, torch.where(usable, squares, 1.0).sqrt(), 0.0) * first * second
    # the square root of a norm that underflows is not zero
    scaled = torch.where(usable, scaled.clamp(min=info.tiny * info.eps), norm[doubtful].unsqueeze(-1))
    return norm.index_put(tuple(doubtful.nonzero(as_tuple=True)), scaled.squeeze(-1))


def safe_square(x: Tensor) -> Tensor:
    """Squares of which none is zero but that of zero."""
    return torch.where(x == 0, torch.zeros_like(x), x.square().clamp(min=torch.finfo(x.dtype).tiny))
