"""Points at which graph and model are compared: random ones of the region, the same each time a program runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def region_point(x: Tensor, perturbation: Any, generator: torch.Generator) -> Tensor:
    """A random point of an ``ℓp`` region around each sample, within its box; the sample where it is no such region."""
    centre = x.detach().as_subclass(Tensor)
    norm, eps = getattr(perturbation, "norm", None), getattr(perturbation, "eps", None)
    if norm is None or not centre.is_floating_point() or norm < 1:
        return centre
    low, high = getattr(perturbation, "x_L", None), getattr(perturbation, "x_U", None)
    draw = torch.rand(centre.shape, generator=generator, dtype=torch.float64).to(centre.device)
    if math.isinf(norm):
        radius = _per_sample(eps, centre)
        start = centre.double() - radius if low is None else low.double().to(centre.device)
        end = centre.double() + radius if high is None else high.double().to(centre.device)
        return (start + draw * (end - start)).to(centre.dtype)
    step = (2 * draw - 1).flatten(1)
    length = step.abs().pow(norm).sum(1).pow(1 / norm).clamp(min=1e-300)
    share = torch.rand(len(centre), generator=generator, dtype=torch.float64).to(centre.device) * 0.5 + 0.49
    step = (step * (share / length).unsqueeze(1)).reshape(centre.shape) * _per_sample(eps, centre)
    point = centre.double() + step
    if low is not None:
        point = torch.maximum(point, low.double().to(point.device))
    if high is not None:
        point = torch.minimum(point, high.double().to(point.device))
    return point.to(centre.dtype)


def _per_sample(eps: Any, centre: Tensor) -> Tensor:
    eps = torch.as_tensor(eps, dtype=torch.float64, device=centre.device).detach()
    return eps.reshape(-1, *[1] * (centre.ndim - 1)) if eps.ndim == 1 else eps


def generator_of(bounded: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """Random points of its own: another seed each call, the same ones each time a program runs."""
    count = getattr(bounded, "_calls", 0)
    object.__setattr__(bounded, "_calls", count + 1)
    return torch.Generator(device).manual_seed(count)


def unit_box(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random input like ``x``, of entries in [0, 1]; ``x`` itself where its entries are integers."""
    if not x.is_floating_point():
        return x
    return torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x)
