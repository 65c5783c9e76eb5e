"""Points and bounds of a region along directions, where the search for the multiplier is what costs."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.regions.ball_box import clipped, dual_value, scale_to_ball
from lirpa_lip.regions.region import Region
from lirpa_lip.regions.sizes import safe_norm


@torch.no_grad()
def support_point(region: Region, direction: Tensor) -> Tensor:
    """Where ``direction · (x − centre)`` is about largest on the region of one sample, ``(rows, *shape)``.

    A point to evaluate the network at, in the region up to rounding; no bound rests on it.
    """
    flat, eps = direction.flatten(1).unsqueeze(0), region.eps.reshape(1, 1)
    if region.low is None:
        size = safe_norm(flat).unsqueeze(-1)
        step = flat / size.clamp(min=torch.finfo(flat.dtype).tiny) * eps.unsqueeze(-1)
    else:
        low, high = (end.unsqueeze(1) for end in region.offsets())
        step = clipped(flat * scale_to_ball(flat, low, high, eps)[0].unsqueeze(-1), low, high)
    x = region.centre + step.reshape(direction.shape)
    return x if region.low is None else torch.minimum(torch.maximum(x, region.low), region.high)


class SupportSearch:
    """`Region.support` of directions that change little from call to call: each goes on from the last multiplier.

    For the region of one sample; as valid, and cheaper, but not the smaller of three bounds.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self._ends = None if region.low is None else region.offsets()
        self._last: Tensor | None = None

    def __call__(self, direction: Tensor) -> Tensor:
        """Upper bounds of ``max direction · (x − centre)``, ``(rows, *shape) -> (rows,)``."""
        a, radius = direction.flatten(1), self.region.eps
        if self._ends is None:
            return safe_norm(a) * radius
        low, high = self._ends
        with torch.no_grad():
            if self._last is None:
                ends = low.unsqueeze(0), high.unsqueeze(0)
                self._last = scale_to_ball(a.unsqueeze(0), *ends, radius.reshape(1, 1))[0].squeeze(0)
            else:
                self._last = self._next(a, low, high, radius)
            multiplier = 0.5 / self._last
            e = clipped(a * self._last.unsqueeze(1), low, high)
        return dual_value(a, e, multiplier, radius)

    def _next(self, a: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
        assert self._last is not None
        free_e = a * self._last.unsqueeze(1)
        e = clipped(free_e, low, high)
        squares = e.square()
        moving = torch.where(e == free_e, squares, 0.0).sum(1)
        room = radius.square() - (squares.sum(1) - moving)
        ratio = (room.clamp(min=0) / torch.where(moving > 0, moving, 1.0)).sqrt()
        # where nothing moves any more the box decides, and the ball's multiplier falls to nothing
        ratio = torch.where(moving > 0, ratio.clamp(0.5, 4.0), torch.where(room > 0, 4.0, 0.5))
        return (self._last * ratio).clamp(1e-100, 1e100)
