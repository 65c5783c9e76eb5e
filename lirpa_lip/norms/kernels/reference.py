"""The steps in plain tensor operations: what every kernel is tested against, and what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

#: Units of rounding, relative to the terms of a step, below which what is left of them is noise.
NOISE = 8


def lanczos_step(
    z: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    v: Tensor,
    v_prev: Tensor,
    beta_prev: Tensor,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the three-term recurrence, for a batch.

    ``y = scale mask z``, ``alpha = v . y``, ``w = y - alpha v - beta_prev v_prev``, ``beta = |w|``, ``v_next = w /
    beta``. Both are 0 where w is no more than what rounding leaves of the terms that cancel: the subspace is invariant,
    and to go on from noise would spoil the Ritz vectors.

    Args:
        z: ``(B, n)``, the operator applied to v, but for its last mask.
        mask: ``(B, n)`` or ``None`` for ones.
        scale: ``(B,)``, brings the operator's norm near one, so that no square overflows.
        v, v_prev: ``(B, n)``, the last two Lanczos vectors.
        beta_prev: ``(B,)``.
        out: where ``v_next`` goes, ``(B, n)``; may be ``v_prev``.

    Returns:
        ``v_next`` (B, n), ``alpha`` (B,), ``beta`` (B,).
    """
    y = z * scale.unsqueeze(1)
    if mask is not None:
        y.mul_(mask)
    alpha = torch.linalg.vecdot(v, y)
    w = y.addcmul_(v, -alpha.unsqueeze(1)).addcmul_(v_prev, -beta_prev.unsqueeze(1))
    beta = torch.linalg.vector_norm(w, dim=1)
    noise = NOISE * torch.finfo(v.dtype).eps * torch.hypot(alpha, beta_prev)
    beta = beta * (beta > noise)
    inverse = reciprocal(beta).unsqueeze(1)
    return (w.mul_(inverse) if out is None else torch.mul(w, inverse, out=out)), alpha, beta


def masked_matmul(x: Tensor, weight: Tensor, mask_in: Tensor | None, mask_out: Tensor | None) -> Tensor:
    """``mask_out * ((mask_in * x) @ weight.T)``.

    Args:
        x, mask_in: ``(B, in)``.
        weight: ``(out, in)``.
        mask_out: ``(B, out)``.
    """
    y = (x if mask_in is None else x * mask_in) @ weight.mT
    return y if mask_out is None else y * mask_out


def reciprocal(value: Tensor) -> Tensor:
    """``1 / value``, and 0 where the value is 0."""
    return torch.where(value > 0, 1 / torch.where(value > 0, value, 1), 0)
