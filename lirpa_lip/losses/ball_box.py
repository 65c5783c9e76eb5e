"""Largest value of a linear function over a ball intersected with a box, from above, and its gradient.

For every class pair the last layer of a network sees

    max ⟨c, v⟩   subject to   ‖v‖₂ ≤ r,   lo ≤ v ≤ up      (lo ≤ 0 ≤ up, so that v = 0 is feasible)

with c = w_j − w_y, from above by `lirpa_lip.regions.ball_box`: as a dual value is returned and never ⟨c, v⟩, a search
stopped early errs upwards. What is here is the memory: class by class in the forward and in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lirpa_lip.regions.ball_box import clipped, dual_value, scale_to_ball

_CHUNK_ELEMENTS = 2**24  # floats of one temporary of shape (batch, classes, features); a few such live at once


def worst_case_increase(
    weight: Tensor, labels: Tensor, radius: Tensor, lower: Tensor, upper: Tensor, *, iterations: int = 20
) -> Tensor:
    """Upper bound, per class j, of ⟨w_j − w_y, v⟩ over ‖v‖₂ ≤ radius and lower ≤ v ≤ upper.

    Memory is linear in the number of classes, in the forward and in the backward pass; gradients reach every tensor
    argument by the envelope theorem, not through the search.

    Args:
        weight: (classes, features) of the last layer.
        labels: (batch,) the class y of each sample.
        radius: (batch,) ≥ 0.
        lower: (batch, features) relative to the centre; values above 0 are taken as 0, which only enlarges the box.
        upper: (batch, features) relative to the centre; values below 0 are taken as 0.
        iterations: steps of the search at most; fewer give a larger, still valid, value.

    Returns:
        (batch, classes); 0 at j = y.
    """
    increase: Tensor = _BallBox.apply(weight, labels, radius, lower.clamp(max=0), upper.clamp(min=0), iterations)
    return increase


class _BallBox(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, labels: Tensor, radius: Tensor, lower: Tensor, upper: Tensor, iterations: int
    ) -> Tensor:
        values, steps = [], []
        for classes in _class_chunks(weight, labels):
            c = weight[classes] - weight[labels].unsqueeze(1)
            t = _search(c, radius, lower, upper, iterations)
            values.append(_dual_value(c, t, radius, lower, upper))
            steps.append(t)
        ctx.save_for_backward(weight, labels, radius, lower, upper, torch.cat(steps, dim=1))
        return torch.cat(values, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """∂D/∂c = v, ∂D/∂r = r/t, and cᵢ − vᵢ/t to the side of the box where vᵢ is clipped, all at the found t."""
        (grad,) = grads
        weight, labels, radius, lower, upper, steps = ctx.saved_tensors
        grad_weight, grad_lower, grad_upper = (torch.zeros_like(a) for a in (weight, lower, upper))
        for classes in _class_chunks(weight, labels):
            c, t, g = weight[classes] - weight[labels].unsqueeze(1), steps[:, classes, None], grad[:, classes]
            v = _clipped(c, t, lower, upper)
            grad_weight[classes] += torch.einsum("bk,bkh->kh", g, v)
            grad_weight.index_add_(0, labels, -torch.einsum("bk,bkh->bh", g, v))
            multiplier = g.unsqueeze(-1) * (c - torch.where(t > 0, v / t, c))
            grad_upper += (multiplier * (v >= upper.unsqueeze(1)) * (c > 0)).sum(1)
            grad_lower += (multiplier * (v <= lower.unsqueeze(1)) * (c < 0)).sum(1)
        slope = radius.unsqueeze(1) / steps
        # At r = 0 the search's t is 0 too; the derivative there is the limit ‖c‖ of r/t along free coordinates.
        slope = torch.where(steps > 0, slope, _pair_norms(weight, labels))
        return grad_weight, None, (grad * slope).sum(1), grad_lower, grad_upper, None


def _search(c: Tensor, radius: Tensor, lower: Tensor, upper: Tensor, iterations: int) -> Tensor:
    """t of `scale_to_ball`, as large as can be where the whole box fits, 0 where there is no ball; (batch, classes)."""
    t, fits = scale_to_ball(c, lower.unsqueeze(1), upper.unsqueeze(1), radius.unsqueeze(1), iterations)
    return torch.where(radius.unsqueeze(1) > 0, torch.where(fits, _most(t), t), 0.0)


def _most(t: Tensor) -> float:
    """Stands for ∞, which times a coordinate that the objective ignores would be no number."""
    return torch.finfo(t.dtype).tiny ** -0.5


def _clipped(c: Tensor, t: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return clipped(t * c, lower.unsqueeze(1), upper.unsqueeze(1))


def _dual_value(c: Tensor, t: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    multiplier = torch.where((t > 0) & (t < _most(t)), 0.5 / t, 0.0)
    return dual_value(c, _clipped(c, t.unsqueeze(-1), lower, upper), multiplier, radius.unsqueeze(1))


def _pair_norms(weight: Tensor, labels: Tensor) -> Tensor:
    """‖w_j − w_y‖ for every sample and class, (batch, classes), without a (batch, classes, features) tensor."""
    distance = torch.cdist(weight.unsqueeze(0), weight.unsqueeze(0), compute_mode="donot_use_mm_for_euclid_dist")[0]
    return distance[labels]


def _class_chunks(weight: Tensor, labels: Tensor) -> list[slice]:
    classes, features = weight.shape
    size = max(1, _CHUNK_ELEMENTS // max(1, len(labels) * features))
    return [slice(start, min(start + size, classes)) for start in range(0, classes, size)]
