"""How much an activation adds to a row once a line has been taken out: Lagrangian bounds over box and ball.

For rows c at an activation's output, any slopes g and t = z − z₀,

    c · (f(z) − f(z₀))  =  (c g) · t  +  Σ_i c_i (f(z_i) − f(z₀_i) − g_i t_i),

and the sum is bounded over what is known of t: l − z₀ <= t <= u − z₀ and Σ_i R_i t_i² <= (r eps)². For any λ >= 0 it is
at most

    λ (r eps)²  +  Σ_i max_{t_i} [ c_i (f(z₀_i + t_i) − f(z₀_i)) − c_i g_i t_i − λ R_i t_i² ],

where each maximum is over parabolas on the pieces of f, in closed form. λ = 0 is the box alone, as in CROWN; without
the box and with R = 1 this is the ℓ₂ relaxation of SDP-CROWN (Chiu et al., ICML 2025). Here the ball has the
*local* rate r, and box and ball act together. Slopes and multipliers are free: any choice is valid, they only decide
how tight it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lirpa_lip.activations.base import Piece
from lirpa_lip.local.layers import Layer
from lirpa_lip.regions.sizes import safe_square

#: Steps towards the best multiplier; any number of them gives a valid bound.
_STEPS = 6
#: Share of the neurons that rows may reach for these to be gathered first.
_SPARSE = 0.3


class Maxima(NamedTuple):
    """Largest values of ``c (f(z₀ + t) − f(z₀)) − c g t − curvature t²``, neuron by neuron, and where they are taken.

    Attributes:
        value: the maximum; at least 0, which is its value at t = 0.
        t, rise: the t where it is taken, and ``f(z₀ + t) − f(z₀)`` there.
        free: whether that t is the peak of a parabola, not an end of a piece.
    """

    value: Tensor
    t: Tensor
    rise: Tensor
    free: Tensor


def maxima(pieces: list[Piece], present: Tensor, c: Tensor, slope: Tensor, curvature: Tensor) -> Maxima:
    """`Maxima` over the pieces of f, for rows, slopes and curvatures ``>= 0`` that fit ``(batch, specs, n)``."""
    curved = curvature > 0
    half = 0.5 / torch.where(curved, curvature, 1.0)
    value = t = rise = torch.zeros_like(c)
    free = torch.zeros_like(c, dtype=torch.bool)
    for piece in pieces:
        rate = c * (piece.slope - slope)
        end = torch.where(rate > 0, piece.high, piece.low)
        # at a peak the derivative with respect to t is zero, so t may be held; at an end it moves with the bounds
        peak = (rate * half).detach()
        at = torch.where(curved, torch.minimum(torch.maximum(peak, piece.low), piece.high), end)
        found = rate * at + c * piece.offset - curvature * at.square()
        better = (piece.low <= piece.high) & present & (found > value)
        value, t = torch.where(better, found, value), torch.where(better, at, t)
        rise = torch.where(better, piece.slope * at + piece.offset, rise)
        free = torch.where(better, curved & (at == peak), free)
    return Maxima(value, t, rise, free)


@dataclass(frozen=True)
class OpenNeurons:
    """The neurons of one activation whose slope is not known, gathered per sample and padded to a common number.

    Attributes:
        index: ``(batch, open)`` flat positions.
        pieces: of the activation there, each tensor ``(batch, 1, open)``; padding is empty.
        weight: ``R``, ``(batch, 1, open)``.
        radius: ``r eps``, ``(batch, 1)``, possibly infinite.
        present: ``(batch, 1, open)``, False on padding.
    """

    index: Tensor
    pieces: list[Piece]
    weight: Tensor
    radius: Tensor
    present: Tensor

    @classmethod
    def of(cls, layer: Layer, eps: Tensor) -> OpenNeurons | None:
        """Gathers a layer's open neurons; ``None`` if no sample has any."""
        radius = layer.slopes.radius.flatten(1)
        open_ = radius > 0
        most = int(open_.sum(1).max())
        if most == 0:
            return None
        index = open_.to(torch.int8).topk(most, dim=1).indices

        def take(t: Tensor) -> Tensor:
            return t.expand_as(layer.anchor).flatten(1).gather(1, index).unsqueeze(1)

        pieces = [
            Piece(*(take(t) for t in (p.slope, p.offset, p.low, p.high)))
            for p in layer.activation.pieces(layer.anchor, layer.lower, layer.upper, layer.slopes)
        ]
        radius = layer.inner_reach(eps).unsqueeze(1)
        return cls(index, pieces, take(layer.slopes.radius), radius, open_.gather(1, index).unsqueeze(1))

    def take(self, rows: Tensor) -> Tensor:
        """``(batch, specs, neurons) -> (batch, specs, open)``."""
        return rows.gather(2, self.index.unsqueeze(1).expand(-1, rows.shape[1], -1))

    def scatter(self, rows: Tensor, values: Tensor) -> Tensor:
        """``rows`` with the open neurons replaced by ``values``."""
        index = self.index.unsqueeze(1).expand(-1, rows.shape[1], -1)
        return rows.scatter(2, index, torch.where(self.present, values, rows.gather(2, index)))

    def support(self, c: Tensor, slope: Tensor) -> Tensor:
        """Upper bound of ``Σ_i c_i (f(z_i) − f(z₀_i) − g_i t_i)``, ``(batch, specs)``; c, g: ``(batch, specs, open)``.

        The smaller of the dual at λ = 0 (the box alone) and at the multiplier the search ends with.
        """
        if int((c != 0).sum(-1).max()) <= _SPARSE * c.shape[-1]:
            neurons, c, slope = self._reached(c, slope)
            return neurons._support(c, slope)
        return self._support(c, slope)

    def _reached(self, c: Tensor, slope: Tensor) -> tuple[OpenNeurons, Tensor, Tensor]:
        """The neurons that each row reaches, its receptive field in a convolution; the others add nothing."""
        reached = c != 0
        most = int(reached.sum(-1).max())
        # the j-th reached neuron of a row goes to column j, all others to a last column that is cut off
        column = torch.where(reached, reached.cumsum(-1) - 1, most)
        index = torch.zeros(*c.shape[:2], most + 1, dtype=torch.long, device=c.device)
        index = index.scatter(2, column, torch.arange(c.shape[-1], device=c.device).expand_as(column))[..., :most]

        def take(t: Tensor) -> Tensor:
            return t.expand(-1, c.shape[1], -1).gather(2, index)

        pieces = [Piece(*(take(t) for t in (p.slope, p.offset, p.low, p.high))) for p in self.pieces]
        used = torch.arange(most, device=c.device) < reached.sum(-1, keepdim=True)
        neurons = OpenNeurons(self.index, pieces, take(self.weight), self.radius, take(self.present) & used)
        return neurons, take(c), take(slope.expand_as(c))

    def _support(self, c: Tensor, slope: Tensor) -> Tensor:
        box = maxima(self.pieces, self.present, c, slope, torch.zeros_like(c)).value.sum(-1)
        finite = torch.isfinite(self.radius)
        if not bool(finite.any()):
            return box
        budget = safe_square(torch.where(finite, self.radius, torch.zeros_like(self.radius)))
        multiplier = self.multiplier(c, slope, budget)
        ball = multiplier * budget + self._maxima(c, slope, multiplier).value.sum(-1)
        usable = finite & torch.isfinite(ball)
        return torch.where(usable, torch.minimum(box, torch.where(usable, ball, box)), box)

    def _maxima(self, c: Tensor, slope: Tensor, multiplier: Tensor) -> Maxima:
        return maxima(self.pieces, self.present, c, slope, multiplier.unsqueeze(-1) * self.weight)

    @torch.no_grad()
    def multiplier(self, c: Tensor, slope: Tensor, budget: Tensor) -> Tensor:
        """A multiplier near the minimum of the dual, ``(batch, specs)``, where ``Σ R t(λ)² = (r eps)²``.

        ``budget`` is ``(r eps)²``, ``(batch, 1)``. Neurons at an end of a piece stay there, free ones move like 1/λ;
        each step solves for λ with the current sets.
        """
        steepest = torch.stack([(c * (p.slope - slope)).abs() for p in self.pieces]).amax(0)
        root = torch.where(self.weight > 0, self.weight, 1.0).sqrt()
        tiny = torch.finfo(c.dtype).tiny ** 0.25
        # where even all neurons together peak inside the ball
        top = torch.where(self.present, steepest / root, 0.0).norm(dim=-1) / (2 * budget.sqrt()).clamp(min=tiny)
        multiplier = top.clamp(min=tiny, max=1 / tiny)
        low, high = torch.zeros_like(multiplier), torch.full_like(multiplier, torch.inf)
        best, least = multiplier, torch.full_like(multiplier, torch.inf)
        for _ in range(_STEPS):
            at = self._maxima(c, slope, multiplier)
            dual, used = multiplier * budget + at.value.sum(-1), self.weight * at.t.square()
            best, least = torch.where(dual < least, multiplier, best), torch.minimum(dual, least)
            moving, held = torch.where(at.free, used, 0.0).sum(-1), torch.where(at.free, 0.0, used).sum(-1)
            room = budget - held
            # the dual is convex in λ, with slope room - moving
            falling = room < moving
            low, high = torch.where(falling, multiplier, low), torch.where(falling, high, multiplier)
            solved = multiplier * (moving / torch.where(room > 0, room, 1.0)).sqrt()
            # sets change by jumps, so a step may lead out of the bracket
            middle = torch.where(torch.isinf(high), 4 * low, torch.maximum((low * high).sqrt(), high / 8))
            inside = (room > 0) & (solved > low) & (solved < high)
            multiplier = torch.where(inside, solved, middle).clamp(min=tiny, max=1 / tiny)
        return best
