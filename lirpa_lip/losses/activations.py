"""What training needs of an activation on an interval: where it is constant, and which rows and columns go with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lirpa_lip.losses.bound import ActivationInterval
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU
from lirpa_lip.nn.functional import broadcast_threshold


class Masks(NamedTuple):
    """0/1 masks, the shape of the activation's input: ``rows`` for the map before it, ``columns`` for the map after.

    They differ for clipped MaxMin alone, which moves its entries. None stands for ones.
    """

    rows: Tensor | None
    columns: Tensor | None


def intervals_of(layer: nn.Module, lower: Tensor, upper: Tensor) -> tuple[ActivationInterval, ...]:
    """The elementwise activations a layer consists of, on its input's interval; none where it is never constant."""
    if isinstance(layer, nn.ReLU):
        return (ActivationInterval(lower, upper, 0.0),)
    if isinstance(layer, ClippedReLU):
        return (ActivationInterval(lower, upper, 0.0, broadcast_threshold(layer.threshold, lower)),)
    if isinstance(layer, ClippedMaxMin):
        (lx, ly), (ux, uy) = lower.chunk(2, dim=1), upper.chunk(2, dim=1)
        ceiling = broadcast_threshold(layer.max_threshold, lx)
        floor = broadcast_threshold(layer.min_threshold, lx)
        top = ActivationInterval(torch.maximum(lx, ly), torch.maximum(ux, uy), constant_above=ceiling)
        return top, ActivationInterval(torch.minimum(lx, ly), torch.minimum(ux, uy), constant_below=floor)
    return ()


@torch.no_grad()
def masks_of(layer: nn.Module, lower: Tensor, upper: Tensor) -> Masks:
    """Which entries can vary on the interval.

    A clipped MaxMin whose output is constant removes its column, and the row it comes from where the order of the pair
    is the same on the whole interval; of a pair in unknown order either both rows go or none.
    """
    alive = [varies(*interval).to(lower.dtype) for interval in intervals_of(layer, lower, upper)]
    if not alive:
        return Masks(None, None)
    if len(alive) == 1:
        return Masks(alive[0], alive[0])
    top, bottom = alive
    (lx, ly), (ux, uy) = lower.chunk(2, dim=1), upper.chunk(2, dim=1)
    either = torch.maximum(top, bottom)
    x = torch.where(lx >= uy, top, torch.where(ux <= ly, bottom, either))
    y = torch.where(lx >= uy, bottom, torch.where(ux <= ly, top, either))
    return Masks(torch.cat([x, y], dim=1), torch.cat([top, bottom], dim=1))


def varies(lower: Tensor, upper: Tensor, below: Tensor | float | None, above: Tensor | float | None) -> Tensor:
    varies = torch.ones_like(lower, dtype=torch.bool)
    if below is not None:
        varies &= upper > below
    if above is not None:
        varies &= lower < above
    return varies
