"""The steps in plain tensor operations: what every kernel is tested against, and what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def lanczos_step(
    z: Tensor, mask: Tensor | None, w: Tensor, w_prev: Tensor, norm: Tensor, norm_prev: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the three-term recurrence, for a batch.

    With ``v = w / norm`` and ``v_prev = w_prev / norm_prev`` (0 where the norm is 0):
    ``y = mask z / norm``, ``alpha = v . y``, ``w_next = y - alpha v - norm v_prev``, ``beta = |w_next|``.

    Args:
        z: ``(B, n)``, the operator applied to w, but for its last mask.
        mask: ``(B, n)`` or ``None`` for ones.
        w, w_prev: ``(B, n)``, unnormalised Lanczos vectors.
        norm, norm_prev: ``(B,)``, their norms.

    Returns:
        ``w_next`` (B, n), ``alpha`` (B,), ``beta`` (B,).
    """
    inverse = reciprocal(norm).unsqueeze(1)
    v = w * inverse
    y = z * inverse if mask is None else (z * inverse).mul_(mask)
    alpha = torch.linalg.vecdot(v, y)
    w_next = y.addcmul_(v, -alpha.unsqueeze(1))
    w_next = w_next.addcmul_(w_prev, -(norm * reciprocal(norm_prev)).unsqueeze(1))
    return w_next, alpha, torch.linalg.vector_norm(w_next, dim=1)


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
