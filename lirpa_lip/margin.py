"""Margins of a classifier as specifications, and the verdict that follows from their bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError


def margin_specification(labels: Tensor, classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """Rows ``e_y − e_j`` for every class ``j ≠ y``, ``(batch, classes − 1, classes)``: margins are ``C f(x)``.

    Raises:
        ShapeError: a label outside ``0 … classes − 1``.

    Example:
        >>> margin_specification(torch.tensor([1]), 3)
        tensor([[[-1.,  1.,  0.],
                 [ 0.,  1., -1.]]])
    """
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ShapeError(f"labels must lie in 0 … {classes - 1}.")
    eye = torch.eye(classes, dtype=dtype or torch.get_default_dtype(), device=labels.device)
    rows = eye[labels].unsqueeze(1) - eye.unsqueeze(0)
    others = torch.arange(classes, device=labels.device).unsqueeze(0) != labels.unsqueeze(1)
    return rows[others].reshape(len(labels), classes - 1, classes)


def certified(margin_lower: Tensor) -> Tensor:
    """Which samples are verified: every margin's lower bound strictly positive. Ties and NaN are not, ``(batch,)``.

    Example:
        >>> certified(torch.tensor([[0.2, 0.1], [0.2, 0.0]]))
        tensor([ True, False])
    """
    return (margin_lower > 0).all(dim=1)
