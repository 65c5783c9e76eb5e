"""The largest value of a linear function over a ball cut by a box, from above, by Lagrangian duality.

For every multiplier λ >= 0

    max aᵀe  <=  λ radius² + Σ_i max_{low_i <= e_i <= high_i} (a_i e_i − λ e_i²),

where the inner maximum is at ``clip(μ a_i, low_i, high_i)``, ``μ = 1 / 2λ``. The right side is smallest where that
point has the ball's radius, or at λ = 0 where the box lies inside the ball along a; how well λ is found only decides
how tight the bound is. The search clips and rescales (Lee, Lee & Park, NeurIPS 2020, arXiv 2010.15480, §3.2): what is
clipped is held, the rest takes the norm that is left. It rises to the solution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.regions.sizes import safe_norm, safe_square

#: Steps of the search; any number of them gives a valid bound.
_STEPS = 8


def box_ball_support(direction: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Upper bound of ``max aᵀe`` subject to ``low <= e <= high`` and ``‖e‖₂ <= radius``.

    The pure box (λ = 0) and the pure ball (no box) are tried as well, so the result never exceeds either.

    Args:
        direction: ``a``, ``(batch, specs, n)``.
        low, high: ``(batch, n)`` with ``low <= 0 <= high``.
        radius: ``(batch,)``, or ``(batch, specs)``.

    Returns:
        ``(batch, specs)``; differentiable in all arguments (the multiplier is held fixed).
    """
    radius = radius.reshape(radius.shape[0], -1)
    low, high = low.unsqueeze(1), high.unsqueeze(1)
    ball = safe_norm(direction) * radius
    box = torch.maximum(direction * low, direction * high).sum(-1)
    with torch.no_grad():
        scale, _ = scale_to_ball(direction, low, high, radius)
        e = clipped(direction * scale.unsqueeze(-1), low, high)
    found = dual_value(direction, e, 1 / (2 * scale), radius)
    return torch.minimum(torch.minimum(ball, box), torch.where(torch.isfinite(found), found, ball))


def dual_value(direction: Tensor, e: Tensor, multiplier: Tensor, radius: Tensor) -> Tensor:
    """``Σ_i a_i e_i − λ e_i² + λ radius²``, a bound where e maximises the sum over the box, ``(batch, specs)``."""
    return (direction * e - multiplier.unsqueeze(-1) * e.square()).sum(-1) + multiplier * safe_square(radius)


def scale_to_ball(
    direction: Tensor, low: Tensor, high: Tensor, radius: Tensor, steps: int = _STEPS
) -> tuple[Tensor, Tensor]:
    """``μ`` with ``‖clip(μ a)‖ ≈ radius``, and where everything is clipped, short of the ball: the whole box fits.

    Each step solves ``μ² Σ_free a_i² + Σ_clipped e_i² = radius²`` for the current clipped set.
    """
    tiny = torch.finfo(direction.dtype).tiny
    scale = radius / safe_norm(direction).clamp(min=tiny**0.5)
    fits = torch.zeros_like(scale, dtype=torch.bool)
    squares = direction.square()
    for _ in range(steps):
        free_e = direction * scale.unsqueeze(-1)
        e = clipped(free_e, low, high)
        free = e == free_e
        held = torch.where(free, 0.0, e.square()).sum(-1)
        moving = torch.where(free, squares, 0.0).sum(-1)
        solved = ((radius.square() - held).clamp(min=0) / moving.clamp(min=tiny)).sqrt()
        fits, before = moving == 0, scale
        scale = torch.where(fits, scale, torch.maximum(solved, scale))
        if bool((scale == before).all()):
            break
    return scale.clamp(min=tiny**0.5, max=1 / tiny**0.5), fits


def clipped(e: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(e, low), high)
