"""Balls of a row's own: for each layer the weights under which what a bound rests on can move least.

The balls of `lirpa_lip.local.half_spaces` weigh neurons by their slopes, whatever row is asked about. But for *any*
weights w >= 0

    Σ_i w_i t_i²  <=  (Lip(W^½ z) eps)²,

so that with slopes g, and rows c that follow from them, the layer adds at most

    (Lip(W^½ z) eps)² + Σ_i max_t [ c_i (f(z₀_i + t) − f(z₀_i)) − c_i g_i t − w_i t² ].

In w this is convex, since ``Lip(W^½ z)²`` is at most the largest eigenvalue of ``K^½ W K^½``, K of the stacked map of
`lirpa_lip.local.composed`. Slopes, weights and the shares of its sources descend together; the eigenvalue is followed
by steps of subspace iteration, and smoothed over the largest few, which near the optimum are nearly equal. None of this
need be exact: what is kept are weights, for which `BallSearch.certified` takes norms. It is what the diagonal
multipliers of the semidefinite relaxation do (Raghunathan et al., 2018; by first-order steps Dathathri et al., 2020),
here within the local intervals and rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.local.composed import composed_rate, stacked_map
from lirpa_lip.local.layers import Layer, Layers
from lirpa_lip.local.limit import is_late
from lirpa_lip.local.linearised import pull_back
from lirpa_lip.local.norm_budget import Norm
from lirpa_lip.local.part_multipliers import Cuts, Multipliers
from lirpa_lip.local.part_neurons import PartNeurons
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import positive_slack
from lirpa_lip.regions.region import Region
from lirpa_lip.regions.sizes import safe_square
from lirpa_lip.regions.support import SupportSearch

#: First step on slopes and on logarithms of weights and shares; it falls to a twentieth.
_STEP, _LAST_STEP, _BETAS = 0.05, 0.05, (0.8, 0.99)
#: Vectors that follow the largest eigenvalues, steps of them before the first, and the width of what is smoothed over.
_VECTORS, _WARM, _WIDTH = 6, 20, 0.02
#: Steps between looks at what is reached.
_LOOK = 10
#: Of what is only an estimate: half the time of float64.
_SINGLE = torch.float32
#: Weights start no smaller than this share of their mean, so that all can grow.
_FLOOR = 1e-3


class _Spread:
    """``Lip(W^½ z)²`` of one layer, to an estimate that is differentiable in the weights and in the sources' shares."""

    def __init__(self, graph: NetworkGraph, layer: Layer, layers: Layers) -> None:
        stacked, radii = stacked_map(graph, layer.parent, None, layers, 1)
        self.map, self.radii, self.shape = stacked.to(_SINGLE), radii[0], layer.anchor.shape[1:]
        self.shares = torch.zeros_like(self.radii)
        size, most = sum(self.map.sizes), min(_VECTORS, sum(self.map.sizes), self.shape.numel())
        generator = torch.Generator(graph.device).manual_seed(0)  # any vectors serve; the same make results repeat
        start = torch.randn(size, most, dtype=_SINGLE, device=graph.device, generator=generator)
        self.vectors = torch.linalg.qr(start)[0].T

    def _scale(self) -> Tensor:
        roots = self.radii / torch.softmax(self.shares, 0).sqrt()
        return torch.cat([r.expand(size) for r, size in zip(roots.to(_SINGLE), self.map.sizes)])

    @torch.no_grad()
    def turn(self, weight: Tensor, steps: int = 1) -> None:
        """Vectors towards those of the largest eigenvalues."""
        scale = self._scale()
        for _ in range(steps):
            moved = self.map.forward(self.vectors * scale)
            back = self.map.adjoint(weight.to(_SINGLE).reshape(1, *self.shape) * moved) * scale
            self.vectors = torch.linalg.qr(back.T)[0].T

    def square(self, weight: Tensor) -> Tensor:
        moved = self.map.forward(self.vectors * self._scale()).flatten(1).to(weight)
        values = torch.linalg.eigvalsh((moved * weight) @ moved.T)
        width = _WIDTH * values[-1].detach().clamp(min=torch.finfo(values.dtype).tiny)
        return width * torch.logsumexp(values / width, 0)


@dataclass
class _State:
    """One row on its way: slopes, logarithms of weights, and what their dual is made of, by activation."""

    neurons: dict[str, PartNeurons]
    spreads: dict[str, _Spread]
    slopes: dict[str, Tensor]
    logs: dict[str, Tensor]

    @property
    def variables(self) -> list[Tensor]:
        return [*self.slopes.values(), *self.logs.values(), *(spread.shares for spread in self.spreads.values())]

    @torch.no_grad()
    def follow(self, steps: int = 1) -> None:
        """Slopes back into their ranges, and vectors after the weights."""
        for name, slope in self.slopes.items():
            found = self.neurons[name].layer.slopes
            low, high = found.low.clamp(max=0).flatten(1), found.high.clamp(min=0).flatten(1)
            slope.copy_(torch.minimum(torch.maximum(slope, low), high))
            self.spreads[name].turn(self.logs[name].exp(), steps)


class BallSearch:
    """Looks for the weights of rows, one after another.

    Args:
        layers, region: of one sample.
        target: the node that rows are of.
    """

    def __init__(self, graph: NetworkGraph, layers: Layers, region: Region, target: str) -> None:
        self.graph, self.region, self.target = graph, region, target
        self.layers = layers
        self.names = [name for name in graph.ancestors(target) if name in layers]

    @property
    def possible(self) -> bool:
        """Whether all rates are known."""
        return all(bool(torch.isfinite(self.layers[n].open_rate).all()) for n in self.names) and bool(self.names)

    def fit(
        self,
        row: Tensor,
        cuts: Mapping[str, Cuts],
        start: Multipliers,
        *,
        steps: int,
        goal: float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Slopes and weights, ``(1, neurons)`` by activation, by descent from multipliers of the common balls.

        Args:
            row: ``(1, *shape)`` of the target.
            cuts, start: of the region itself, for this row.
            goal: where to end before all steps are taken: looked at every few steps, with vectors followed further.
        """
        state = self._start(cuts, start)
        optimizer = torch.optim.Adam(state.variables, lr=_STEP, betas=_BETAS)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, _LAST_STEP ** (1 / max(1, steps)))
        support = SupportSearch(self.region)
        for step in range(steps):
            if is_late() or (step % _LOOK == _LOOK - 1 and self._below(goal, row, state, support)):
                break
            for t in state.variables:
                t.requires_grad_()
            with torch.enable_grad():
                value = self._dual(row, state, support)
            value.backward(inputs=state.variables)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            state.follow()
        return {n: t.detach() for n, t in state.slopes.items()}, {n: t.detach().exp() for n, t in state.logs.items()}

    @torch.no_grad()
    def _below(self, goal: float, row: Tensor, state: _State, support: Callable[[Tensor], Tensor]) -> bool:
        if float(self._dual(row, state, support)) >= goal:
            return False
        state.follow(2 * _WARM)
        return float(self._dual(row, state, support)) < goal

    def _start(self, cuts: Mapping[str, Cuts], start: Multipliers) -> _State:
        neurons, spreads, logs = {}, {}, {}
        for name in self.names:
            layer = self.layers[name]
            neurons[name] = PartNeurons(layer, self.region.eps, cuts[name])
            spreads[name] = _Spread(self.graph, layer, self.layers)
            weight, _ = neurons[name].curvature(start.logs[name])
            logs[name] = (weight + _FLOOR * weight.mean()).clamp(min=torch.finfo(weight.dtype).tiny).log()
        state = _State(neurons, spreads, {n: start.slopes[n].clone() for n in self.names}, logs)
        state.follow(_WARM)
        return state

    def _dual(self, row: Tensor, state: _State, support: Callable[[Tensor], Tensor]) -> Tensor:
        parts: list[Tensor] = []
        square_of_eps = safe_square(self.region.eps)

        def rule(name: str, cotangent: Tensor) -> Tensor | None:
            if name not in state.neurons:
                return None
            c, slope, weight = cotangent.flatten(1), state.slopes[name], state.logs[name].exp()
            row = c * slope
            at = state.neurons[name].inner(c, row, weight)
            parts.append(state.spreads[name].square(weight) * square_of_eps)
            parts.append((c * at.rise - row * at.t - weight * at.t.square()).sum(-1))
            return slope.reshape(cotangent.shape)

        collected = pull_back(self.graph, self.target, row, rule)
        return torch.stack([*parts, support(collected[self.graph.input])]).sum()

    @torch.no_grad()
    def certified(
        self, weights: Mapping[str, Tensor], norm: Norm
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """A row's balls by activation, and the logarithms of the multipliers at which they are what was given.

        A ball is weights ``(1, neurons)`` and the square of its radius, ``(1,)``. Weights are scaled to lie below S, so
        that gains and anchors' errors of S^½ z bound those of W^½ z.
        """
        balls, logs = {}, {}
        for name in self.names:
            layer = self.layers[name]
            most = layer.slopes.magnitude.flatten(1)
            live = most > 0
            scale = torch.where(live, weights[name] / torch.where(live, most, 1.0), 0.0).amax()
            usable = bool(torch.isfinite(scale)) and float(scale) > 0
            weight = torch.where(live, torch.minimum(weights[name] / scale, most), 0.0) if usable else 0 * most
            mask = weight.reshape(layer.anchor.shape)
            gains = self.layers.gains.get(name)
            rate = composed_rate(self.graph, layer.parent, mask, self.layers, norm, gains=gains)
            reach = self.region.eps * (rate * (1 + positive_slack(0, self.graph.dtype))) + layer.error
            square = safe_square(reach) * (1 + positive_slack(0, self.graph.dtype))
            known = bool(torch.isfinite(square).all())
            balls[name] = (weight, square) if known else (0 * weight, torch.zeros_like(square))
            logs[name] = scale.log().reshape(1, 1) if usable and known else torch.zeros_like(square).reshape(1, 1)
        return balls, logs
