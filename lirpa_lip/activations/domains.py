"""Intervals that leave a function's domain: what is said of them, and that nothing is bounded there."""

from __future__ import annotations

import torch
from torch import Tensor


def widest(lower: Tensor, upper: Tensor, inside: Tensor) -> str:
    """The hull of the intervals that are not inside, as text."""
    return f"[{float(lower[~inside].min()):.4g}, {float(upper[~inside].max()):.4g}]"


def or_infinite(inside: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """``low`` and ``high`` where an interval is inside, and no bound elsewhere."""
    return torch.where(inside, low, -torch.inf), torch.where(inside, high, torch.inf)
