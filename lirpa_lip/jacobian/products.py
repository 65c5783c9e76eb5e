"""Linear relaxations of one step of the chain rule, ``h = s·g``: a slope times the cotangent that meets it.

With s in ``[s_l, s_u]`` and g in ``[l, u]``, h lies between ``min(s_l g, s_u g)`` and ``max(s_l g, s_u g)``, concave
and convex in g. Where g keeps its sign both are straight and exact. Where it changes sign the tightest lines are
their chords (Shi et al., NeurIPS 2022, section 3.3, there for s in [0, 1]; the same hull is McCormick's for the
product of two boxes):

    h  ≤  chord of (l, s_l l) and (u, s_u u),          h  ≥  chord of (l, s_u l) and (u, s_l u).

The interval form replaces both lines by constants there, which is RecurJac's rule (Zhang et al., AAAI 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange

TIGHT, INTERVAL = "tight", "interval"


@dataclass(frozen=True)
class Products:
    """``low_slope·g + low_offset ≤ s·g ≤ high_slope·g + high_offset``, each ``(batch, rows, *shape)``."""

    low_slope: Tensor
    low_offset: Tensor
    high_slope: Tensor
    high_offset: Tensor

    def upper(self, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """For tangents a ``(batch, rows, k, *shape)``: ``a·h ≤ a'·g + c``; returns ``a'`` and ``c (batch, rows,
        k)``."""
        above, below = tangent.clamp(min=0), tangent.clamp(max=0)
        moved = above * self.high_slope.unsqueeze(2) + below * self.low_slope.unsqueeze(2)
        constant = above * self.high_offset.unsqueeze(2) + below * self.low_offset.unsqueeze(2)
        return moved, constant.flatten(3).sum(-1)


def products(slopes: SlopeRange, lower: Tensor, upper: Tensor, form: str = TIGHT) -> Products:
    """The relaxation for slopes ``(batch, *shape)`` and cotangents in ``[lower, upper]``, ``(batch, rows, *shape)``."""
    least, greatest = slopes.low.unsqueeze(1).expand_as(lower), slopes.high.unsqueeze(1).expand_as(lower)
    crossing = (lower < 0) & (upper > 0) & (least < greatest)
    negative = upper <= 0
    high_slope = torch.where(negative, least, greatest)
    low_slope = torch.where(negative, greatest, least)
    low, high = product_range(slopes, lower, upper)
    zero = torch.zeros_like(lower)
    if form == INTERVAL:
        return Products(
            torch.where(crossing, 0.0, low_slope),
            torch.where(crossing, low, zero),
            torch.where(crossing, 0.0, high_slope),
            torch.where(crossing, high, zero),
        )
    width = torch.where(crossing, upper - lower, 1.0)
    rise = (greatest * upper - least * lower) / width
    fall = (least * upper - greatest * lower) / width
    # the offsets are s_u u − rise·u and s_l u − fall·u, written without cancellation
    gap = torch.where(crossing, (greatest - least) * upper * (-lower) / width, zero)
    return Products(
        torch.where(crossing, fall, low_slope),
        -gap,
        torch.where(crossing, rise, high_slope),
        gap,
    )


def product_range(slopes: SlopeRange, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Range of ``s·g`` over both boxes, ``(batch, rows, *shape)``."""
    least, greatest = slopes.low.unsqueeze(1), slopes.high.unsqueeze(1)
    low = torch.minimum(least * lower, greatest * lower)
    high = torch.maximum(least * upper, greatest * upper)
    return torch.minimum(low, torch.minimum(least * upper, greatest * upper)), torch.maximum(
        high, torch.maximum(least * lower, greatest * lower)
    )
