"""Points of a ball that a bound must not contradict: random ones, and the worst ones that an attack finds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def sampled_points(x: Tensor, eps: float, count: int, seed: int = 0) -> Tensor:
    """``count`` random points of each ball cut by [0, 1], half of them from its sphere, ``(count, *x.shape)``."""
    generator = torch.Generator().manual_seed(seed)
    points = []
    for index in range(count):
        step = torch.randn(x.shape, generator=generator)
        share = torch.rand(len(x), generator=generator) if index % 2 else torch.ones(len(x))
        points.append(_inside(x, step * (share * eps / _size(step)).reshape(-1, *[1] * (x.ndim - 1)), eps))
    return torch.stack(points)


def strongest(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, restarts: int = 2, seed: int = 0
) -> Tensor:
    """The point of smallest margin that PGD (Madry et al., 2018) finds in each ball cut by [0, 1], ``x.shape``.

    Each step goes ``2.5 eps / steps`` along the gradient of the largest wrong logit less the right one. The first run
    starts at the centre, the others at random points.
    """
    best = x.clone()
    best_margin = _margin(model, x, y).detach()
    starts = [x, *sampled_points(x, eps, restarts - 1, seed)]
    for start in starts:
        point = start.clone()
        for _ in range(steps):
            with torch.enable_grad():
                point = point.detach().requires_grad_()
                margin = _margin(model, point, y)
                (gradient,) = torch.autograd.grad(margin.sum(), point)
            size = _size(gradient).clamp(min=1e-12).reshape(-1, *[1] * (x.ndim - 1))
            point = _inside(x, point.detach() - x - 2.5 * eps / steps * gradient / size, eps)
            found = _margin(model, point, y).detach()
            better = found < best_margin
            best_margin = torch.where(better, found, best_margin)
            best = torch.where(better.reshape(-1, *[1] * (x.ndim - 1)), point, best)
    return best


def _margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    right = F.one_hot(y, logits.shape[1]).bool()
    return logits[right] - logits.masked_fill(right, -torch.inf).amax(1)


def _size(step: Tensor) -> Tensor:
    return step.flatten(1).norm(dim=1)


def _inside(x: Tensor, step: Tensor, eps: float) -> Tensor:
    """``x + step``, shrunk to well within the ball, then clipped to [0, 1], which only shortens the step."""
    shrink = (eps * (1 - 1e-6) / _size(step).clamp(min=1e-30)).clamp(max=1.0)
    return (x + step * shrink.reshape(-1, *[1] * (x.ndim - 1))).clamp(0, 1)
