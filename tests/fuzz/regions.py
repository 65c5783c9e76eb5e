"""Random regions: balls and boxes, thin, of radius 0, per sample, cut by a box; and points of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip import BoundedTensor, PerturbationLpNorm

from .layers import Shape


@dataclass(frozen=True)
class Ball:
    """``‖x − centre‖_p ≤ eps`` and ``low ≤ x ≤ high``; everything in the precision of the model, on purpose.

    ``eps`` is ``(batch,)`` in float64; a number the model's precision cannot hold stays one.
    """

    centre: Tensor
    eps: Tensor
    norm: float
    low: Tensor | None = None
    high: Tensor | None = None
    image_box: tuple[float, float] | None = None

    @property
    def bounded(self) -> tuple[BoundedTensor]:
        """What auto_LiRPA's methods take."""
        eps = float(self.eps[0]) if bool((self.eps == self.eps[0]).all()) else self.eps
        box = {} if self.low is None else {"x_L": self.low, "x_U": self.high}
        return (BoundedTensor(self.centre, PerturbationLpNorm(norm=self.norm, eps=eps, **box)),)

    def project(self, x: Tensor) -> Tensor:
        """Points ``(count, batch, *shape)`` in float64 moved into the region."""
        centre = self.centre.double()
        eps = self.eps.reshape(-1, *[1] * (centre.ndim - 1))
        step = x - centre
        if math.isinf(self.norm):
            step = torch.minimum(torch.maximum(step, -eps), eps)
        else:
            size = step.flatten(2).norm(p=self.norm, dim=2).reshape(*step.shape[:2], *[1] * (centre.ndim - 1))
            step = step * torch.where(size > eps, eps / size.clamp(min=1e-300), 1.0) * (1 - 1e-12)
        x = centre + step
        if self.low is not None:
            x = torch.minimum(torch.maximum(x, self.low.double()), self.high.double())
        if self.image_box is not None:
            x = x.clamp(*self.image_box)
        return x

    def points(self, count: int, generator: torch.Generator) -> Tensor:
        """Random points, the centre first; half of the others at the edge."""
        centre = self.centre.double()
        step = torch.randn(count, *centre.shape, generator=generator, dtype=torch.float64)
        eps = self.eps.reshape(-1, *[1] * (centre.ndim - 1))
        size = step.flatten(2).norm(dim=2).clamp(min=1e-30).reshape(count, len(centre), *[1] * (centre.ndim - 1))
        share = torch.rand(count, len(centre), generator=generator, dtype=torch.float64)
        share = torch.where(share < 0.5, 2 * share, torch.ones_like(share)).reshape(size.shape)
        wide = math.sqrt(centre[0].numel()) if math.isinf(self.norm) else 1.0
        step = step / size * share * eps * wide
        step[0] = 0
        return self.project(centre + step)


def random_region(rng: random.Random, shape: Shape, dtype: torch.dtype, norm: float | None = None) -> Ball:
    """A region around one to four random inputs."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    batch = rng.choice([1, 1, 2, 3, shape[0]])
    centre = (torch.rand(batch, *shape, generator=generator, dtype=torch.float64) * 2 - 0.5).to(dtype)
    norm = norm or rng.choice([2.0, 2.0, 2.0, math.inf])
    size = rng.choice([0.0, 1e-6, 0.01, 0.1, 0.3, 0.7, 1.0, 5.0])
    eps = torch.full((batch,), size, dtype=torch.float64)
    if rng.random() < 0.25:
        eps = eps * torch.rand(batch, generator=generator, dtype=torch.float64)
    kind = rng.random()
    if kind < 0.7 or size == 0:
        return Ball(centre, eps, norm)
    if kind < 0.8:
        low, high = min(-0.5, float(centre.min())), max(1.0, float(centre.max()))
        return Ball(centre, eps, norm, image_box=(low, high))
    room = torch.rand(2, *centre.shape, generator=generator, dtype=torch.float64) * size
    if rng.random() < 0.3:  # some coordinates that cannot move
        room[:, :, ..., 0] = 0
    if math.isinf(norm):  # there a box takes the place of the radius
        room = torch.minimum(room, eps.reshape(-1, *[1] * (centre.ndim - 1)))
    low, high = centre.double() - room[0], centre.double() + room[1]
    return Ball(centre, eps, norm, low.to(dtype).minimum(centre), high.to(dtype).maximum(centre))
