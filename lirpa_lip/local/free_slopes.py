"""A row's deviation with every slope free: descent on the slopes and on the multipliers of two balls per layer.

In `lirpa_lip.local.relaxation` the stable neurons keep their line. Here they may leave it, as in SDP-CROWN (Chiu et
al., ICML 2025), but over the *local* balls and intervals. A layer's deviations t = z − z₀ lie in two balls whose radii
propagation knows, of all live neurons and of the open ones,

    Σ_i S_i t_i² <= (Lip(S^½ z) eps)²,        Σ_i R_i t_i² <= (Lip(R^½ z) eps)²,

so that for any slopes g and multipliers λ, μ >= 0 a row c at the activation's output adds at most

    λ (Lip(S^½ z) eps)² + μ (Lip(R^½ z) eps)²
        + Σ_i max_{t_i} [ c_i (f(z₀_i + t_i) − f(z₀_i) − g_i t_i) − (λ S_i + μ R_i) t_i² ]

to what is pulled back through g. With all slopes 0 this is the product bound, with the stable neurons' own slopes the
composed one, and the best g mostly lies between. Slopes and multipliers descend together, so that a step costs one
maximum per neuron.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.activations.base import Piece
from lirpa_lip.local.layers import Layer, Layers
from lirpa_lip.local.limit import is_late
from lirpa_lip.local.linearised import pull_back
from lirpa_lip.local.relaxation import OpenNeurons, maxima
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import RowErrors
from lirpa_lip.regions.region import Region
from lirpa_lip.regions.sizes import safe_norm, safe_square

#: First step on slopes (of ranges of length about 1) and on the logarithms of multipliers; both fall to a fifth.
_SLOPE_STEP, _LOG_STEP, _LAST_STEP = 0.1, 1.0, 0.2
_BETAS = (0.8, 0.99)
#: Each ball starts with this share of the multiplier that is best for it alone.
_SHARE = 0.7


@dataclass(frozen=True)
class FreeNeurons:
    """All neurons of one activation for rows that each belong to one sample.

    Attributes:
        low, high: of the slopes, ``(rows, 1, neurons)``; 0 lies between them.
        balls: of ``S^½ z`` and of ``R^½ z``; both with the same pieces.
    """

    low: Tensor
    high: Tensor
    balls: tuple[OpenNeurons, OpenNeurons]

    @classmethod
    def of(cls, layer: Layer, eps: Tensor, sample: Tensor) -> FreeNeurons:
        """The neurons of ``layer`` for rows of the samples ``sample (rows,)``."""

        def rows(t: Tensor) -> Tensor:
            return t.expand_as(layer.anchor).flatten(1)[sample].unsqueeze(1)

        found = layer.activation.pieces(layer.anchor, layer.lower, layer.upper, layer.slopes)
        pieces = [Piece(*(rows(t) for t in (p.slope, p.offset, p.low, p.high))) for p in found]
        live, open_ = (
            _ball(pieces, rows(weight), reach[sample].unsqueeze(1), sample)
            for weight, reach in (
                (layer.slopes.magnitude, layer.reach(eps)),
                (layer.slopes.radius, layer.inner_reach(eps)),
            )
        )
        return cls(rows(layer.slopes.low.clamp(max=0)), rows(layer.slopes.high.clamp(min=0)), (live, open_))

    def multipliers(self, c: Tensor, slope: Tensor) -> Tensor:
        """Logarithms of multipliers to start from, ``(rows, 1, 2)``."""
        found = [ball.multiplier(c, slope, safe_square(ball.radius)) for ball in self.balls]
        return (_SHARE * torch.stack(found, dim=-1)).log()

    def dual(self, c: Tensor, slope: Tensor, logs: Tensor, fixed: bool) -> Tensor:
        """The layer's part for rows ``c`` and slopes ``(rows, 1, neurons)``, ``(rows, 1)``.

        Args:
            fixed: differentiate for slopes, multipliers and rows alone: the maximisers then may be held.
        """
        multiplier, (first, second) = logs.exp(), self.balls
        radii, weights = (first.radius, second.radius), (first.weight, second.weight)
        if fixed:
            radii, weights = (tuple(t.detach() for t in pair) for pair in (radii, weights))
        cost = multiplier[..., 0] * safe_square(radii[0]) + multiplier[..., 1] * safe_square(radii[1])
        curvature = multiplier[..., :1] * weights[0] + multiplier[..., 1:] * weights[1]
        if not fixed:
            return cost + maxima(first.pieces, first.present, c, slope, curvature).value.sum(-1)
        with torch.no_grad():
            at = maxima(first.pieces, first.present, c, slope, curvature)
        return cost + (c * (at.rise - slope * at.t) - curvature * at.t.square()).sum(-1)


def _ball(pieces: list[Piece], weight: Tensor, radius: Tensor, sample: Tensor) -> OpenNeurons:
    # a ball of unknown radius says nothing: no weight, and no cost
    finite = torch.isfinite(radius)
    weight = torch.where(finite.unsqueeze(-1), weight, 0.0)
    present = torch.ones_like(weight, dtype=torch.bool)
    return OpenNeurons(sample, pieces, weight, torch.where(finite, radius, 0.0), present)


class FreeSlopes:
    """Upper bounds of ``vᵀ(z(x) − z(centre))`` for single rows v, each with a sample of the region of its own."""

    def __init__(self, graph: NetworkGraph, layers: Layers, region: Region, sample: Tensor) -> None:
        self.graph, self.sample = graph, sample
        self.neurons = {name: FreeNeurons.of(layer, region.eps, sample) for name, layer in layers.items()}
        self.region = region.select(sample)
        # rows by sample, so that each row meets the error terms of its own
        self.slack = {name: t.expand(len(region.eps), *t.shape[1:])[sample] for name, t in layers.slack.items()}
        self.size = {name: safe_norm(t.flatten(1)).unsqueeze(1) for name, t in self.slack.items()}

    def upper(
        self, target: str, rows: Tensor, start: dict[str, Tensor], steps: int, goal: Tensor | None = None
    ) -> Tensor:
        """The smallest of the bounds that ``steps`` steps of descent pass through, ``(rows,)``.

        Args:
            rows: ``(rows, *shape)`` of the node ``target``.
            start: slopes of every activation before it, ``(rows, neurons)``.
            goal: ``(rows,)``; the search ends once all rows lie below it.
        """
        slopes = {n: s.detach().unsqueeze(1).clone() for n, s in start.items()}
        logs = self._start(target, rows, slopes)
        steps_of = ((slopes, _SLOPE_STEP), (logs, _LOG_STEP))
        groups = [{"params": list(table.values()), "lr": step} for table, step in steps_of]
        optimizer = torch.optim.Adam(groups, betas=_BETAS)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, _LAST_STEP ** (1 / max(1, steps - 1)))
        best = torch.full_like(self.region.eps, torch.inf)
        for _ in range(steps):
            if is_late():
                break
            for t in (*slopes.values(), *logs.values()):
                t.requires_grad_()
            with torch.enable_grad():
                value = self._evaluate(target, rows.detach(), slopes, logs, fixed=True)
                optimizer.zero_grad()
                value.sum().backward(inputs=[*slopes.values(), *logs.values()])
            best = _smaller(best, value.detach())
            if goal is not None and bool((best < goal).all()):
                break
            optimizer.step()
            schedule.step()
            self._project(slopes)
        slopes, logs = ({n: t.detach() for n, t in table.items()} for table in (slopes, logs))
        # the last once more, where gradients of weights may be wanted
        return _smaller(best, self._evaluate(target, rows, slopes, logs, fixed=False))

    @torch.no_grad()
    def _start(self, target: str, rows: Tensor, slopes: dict[str, Tensor]) -> dict[str, Tensor]:
        logs = {}

        def rule(name: str, cotangent: Tensor) -> Tensor | None:
            if name not in slopes:
                return None
            logs[name] = self.neurons[name].multipliers(cotangent.flatten(1).unsqueeze(1), slopes[name])
            return slopes[name].reshape(cotangent.shape)

        pull_back(self.graph, target, rows, rule)
        return logs

    def _evaluate(
        self, target: str, rows: Tensor, slopes: dict[str, Tensor], logs: dict[str, Tensor], fixed: bool
    ) -> Tensor:
        parts: list[Tensor] = []

        def rule(name: str, cotangent: Tensor) -> Tensor | None:
            if name not in slopes:
                return None
            c = cotangent.flatten(1).unsqueeze(1)
            parts.append(self.neurons[name].dual(c, slopes[name], logs[name], fixed))
            return slopes[name].reshape(cotangent.shape)

        errors = RowErrors(self.slack, len(rows), self.size if fixed else None)
        collected = pull_back(self.graph, target, rows, rule, errors.visit)
        bound = sum(parts, self.region.support(collected[self.graph.input].unsqueeze(1)))
        return errors.added(bound, self.graph).squeeze(1)

    @torch.no_grad()
    def _project(self, slopes: dict[str, Tensor]) -> None:
        for name, slope in slopes.items():
            slope.copy_(torch.minimum(torch.maximum(slope, self.neurons[name].low), self.neurons[name].high))


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    """The minimum that prefers a to NaN."""
    return torch.where(b < a, b, a)
