"""All neurons of one activation on parts of a region: pieces on cut intervals, balls, and the maximum over each neuron.

The terms of the Lagrangian that `lirpa_lip.local.half_spaces` adds up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.activations.base import Piece
from lirpa_lip.local.layers import Layer
from lirpa_lip.local.part_multipliers import Cuts
from lirpa_lip.regions.sizes import safe_square


@dataclass(frozen=True)
class Inner:
    """Maximisers of a layer's neurons: t, ``f(z₀ + t) − f(z₀)`` on the piece's line, and that line's slope."""

    t: Tensor
    rise: Tensor
    slope: Tensor


class PartNeurons:
    """All neurons of one activation on several parts.

    Args:
        own: weights ``(parts, neurons)`` and squared radii ``(parts,)`` of a third ball.
    """

    def __init__(self, layer: Layer, eps: Tensor, cuts: Cuts, own: tuple[Tensor, Tensor] | None = None) -> None:
        parts, shape = len(cuts.lower), layer.anchor.shape[1:]
        self.layer = layer
        anchor = layer.anchor.expand(parts, *shape)
        lower, upper = (t.reshape(parts, *shape) for t in (cuts.lower, cuts.upper))
        found = layer.activation.pieces(anchor, lower, upper, layer.slopes)
        self.pieces = [
            Piece(*(t.expand(parts, *shape).flatten(1) for t in (p.slope, p.offset, p.low, p.high))) for p in found
        ]
        self.present = [piece.low <= piece.high for piece in self.pieces]
        self.low, self.high = cuts.lower - layer.anchor.flatten(1), cuts.upper - layer.anchor.flatten(1)
        live, open_ = layer.slopes.magnitude.flatten(1), layer.slopes.radius.flatten(1)
        # a ball of unknown radius says nothing: no weight, and no cost
        self.balls = []
        for weight, reach in ((live, layer.reach(eps)), (open_, layer.inner_reach(eps))):
            known = bool(torch.isfinite(reach).all())
            self.balls.append((weight if known else 0 * weight, safe_square(reach) if known else 0 * reach))
        if own is not None:
            self.balls.append(own)

    def curvature(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        """``λ S + μ R``, and what the third ball adds, of every neuron, and what the balls cost, ``(parts,)``."""
        multiplier = logs.exp()
        (weight, square), *others = self.balls
        total, cost = multiplier[:, :1] * weight, multiplier[:, 0] * square
        for k, (weight, square) in enumerate(others, 1):
            total, cost = total + multiplier[:, k : k + 1] * weight, cost + multiplier[:, k] * square
        return total, cost

    @torch.no_grad()
    def inner(self, c: Tensor, row: Tensor, curvature: Tensor) -> Inner:
        """Where the maximum over t is taken, for rows c at the output and G at the input."""
        curved = curvature > 0
        half = 0.5 / torch.where(curved, curvature, 1.0)
        best = torch.full_like(c, -torch.inf)
        t = rise = slope = torch.zeros_like(c)
        for piece, present in zip(self.pieces, self.present):
            rate = c * piece.slope - row
            at = torch.where(curved, rate * half, torch.where(rate > 0, piece.high, piece.low))
            at = torch.minimum(torch.maximum(at, piece.low), piece.high)
            value = rate * at + c * piece.offset - curvature * at.square()
            better = present & (value > best)
            best, t = torch.where(better, value, best), torch.where(better, at, t)
            rise = torch.where(better, piece.slope * at + piece.offset, rise)
            slope = torch.where(better, piece.slope, slope)
        return Inner(t, rise, slope)

    def gaps(self, z: Tensor, c: Tensor, row: Tensor, curvature: Tensor) -> Tensor:
        """How much the maximum exceeds the value at pre-activations ``z``, moved into the cut interval."""
        at = self.inner(c, row, curvature)
        best = c * at.rise - row * at.t - curvature * at.t.square()
        t = torch.minimum(torch.maximum(z - self.layer.anchor.flatten(1), self.low), self.high)
        shape = (len(t), *self.layer.anchor.shape[1:])
        anchor = self.layer.anchor.expand(shape)
        rise = self.layer.activation.value(anchor + t.reshape(shape)) - self.layer.activation.value(anchor)
        return (best - (c * rise.flatten(1) - row * t - curvature * t.square())).clamp(min=0)
