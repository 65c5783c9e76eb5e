"""Largest value of a linear function over a ball intersected with a box, from above, and its gradient.

For every class pair the last layer of a network sees

    max ⟨c, v⟩   subject to   ‖v‖₂ ≤ r,   lo ≤ v ≤ up      (lo ≤ 0 ≤ up, so that v = 0 is feasible)

with c = w_j − w_y. By Lagrangian duality, for every t > 0,

    D(t) = r² / (2t) + Σᵢ cᵢ vᵢ − vᵢ² / (2t),     v = clip(t·c, lo, up),

is at least the maximum, and equals it where ‖v‖ = r, or in the limit t → ∞ where the box lies inside the ball along c.
The search for t is the clip-and-rescale iteration of Lee, Lee & Park (NeurIPS 2020, arXiv 2010.15480, §3.2): clip,
give the coordinates that are still free the norm that is left, repeat. It rises monotonically and ends when the set of
clipped coordinates settles. As we return D(t) and never ⟨c, v⟩, a search stopped early errs upwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """Clip-and-rescale: t with ‖clip(t·c, lo, up)‖ = r, or ∞ where the whole box fits; (batch, classes)."""
    square = c.square()
    radius = radius.unsqueeze(1)
    norm = square.sum(-1).sqrt()
    t = torch.where(norm > 0, radius / norm, torch.inf)
    for _ in range(iterations):
        v = _clipped(c, t.unsqueeze(-1), lower, upper)
        clipped = v != t.unsqueeze(-1) * c
        free = torch.where(clipped, 0, square).sum(-1)
        left = (radius.square() - torch.where(clipped, v.square(), 0).sum(-1)).clamp(min=0)
        longer = torch.where(free > 0, (left / free).sqrt(), torch.inf)
        settled = longer <= t
        t = torch.where(settled, t, longer)
        if bool(settled.all()):
            break
    return torch.where(radius > 0, t, 0.0)


def _clipped(c: Tensor, t: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """clip(t·c, lo, up), where 0·∞ (a coordinate the objective ignores) counts as 0."""
    moved = torch.where(c == 0, 0.0, t * c)
    return torch.minimum(torch.maximum(moved, lower.unsqueeze(1)), upper.unsqueeze(1))


def _dual_value(c: Tensor, t: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    v = _clipped(c, t.unsqueeze(-1), lower, upper)
    linear = (c * v).sum(-1)
    correction = (radius.unsqueeze(1).square() - v.square().sum(-1)) / (2 * t)
    return linear + torch.where((t > 0) & ~torch.isinf(t), correction, 0.0)


def _pair_norms(weight: Tensor, labels: Tensor) -> Tensor:
    """‖w_j − w_y‖ for every sample and class, (batch, classes), without a (batch, classes, features) tensor."""
    distance = torch.cdist(weight.unsqueeze(0), weight.unsqueeze(0), compute_mode="donot_use_mm_for_euclid_dist")[0]
    return distance[labels]


def _class_chunks(weight: Tensor, labels: Tensor) -> list[slice]:
    classes, features = weight.shape
    size = max(1, _CHUNK_ELEMENTS // max(1, len(labels) * features))
    return [slice(start, min(start + size, classes)) for start in range(0, classes, size)]
