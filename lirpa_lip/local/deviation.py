"""How far a row of some node can move from its value at the centre: one backward pass with free slopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lirpa_lip.activations.base import Piece
from lirpa_lip.local.free_slopes import FreeSlopes
from lirpa_lip.local.layers import Layer, Layers
from lirpa_lip.local.limit import is_late
from lirpa_lip.local.linearised import pull_back
from lirpa_lip.local.relaxation import OpenNeurons
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import RowErrors
from lirpa_lip.regions.region import Region

#: Slopes ``(for rows that are positive at a neuron, for negative ones)``, each ``(batch, 1, open)``.
Pair = tuple[Tensor, Tensor]
#: Most elements (rows × neurons) in one descent.
_ELEMENTS = 1 << 23
#: Rows of each sample on which rules are tried before many: what wins for none of them is left out for all.
_SAMPLE = 16


class Deviation:
    """Upper bounds of ``vᵀ(z(x) − z(centre))`` over the region for rows v of any node after the given layers.

    Several choices of slopes are tried, and the best is kept for each row:

    * the slope whose line leaves least over the interval, by the sign of the row: CROWN's choice on a ReLU for one
      sign, the tangent for the other; good where the intervals hold them;
    * the centre of the slope range, on which the rates of the layers rest;
    * the tangent at the centre, good where the ball is what holds the neurons.
    """

    def __init__(self, graph: NetworkGraph, layers: Layers, region: Region) -> None:
        self.graph, self.layers, self.region = graph, layers, region
        found = {name: OpenNeurons.of(layer, region.eps) for name, layer in layers.items()}
        self.open = {name: neurons for name, neurons in found.items() if neurons is not None}
        self.rules = [self._pairs(pick) for pick in (_least, _centre, _tangent)]

    def _pairs(self, pick: Callable[[Layer, OpenNeurons], Pair]) -> dict[str, Pair]:
        return {name: pick(self.layers[name], neurons) for name, neurons in self.open.items()}

    def upper(self, target: str, rows: Tensor, steps: int = 0, goal: Tensor | None = None) -> Tensor:
        """The bound for ``rows (batch, specs, *shape)`` of ``target``, ``(batch, specs)``.

        Args:
            steps: of descent on the slopes of all neurons, each row its own, from the best of the fixed choices.
            goal: ``(batch, specs)``. Rows that are below it, or can never be, take no steps, and samples with no
                others after one choice of slopes no more choices.
        """
        reached = set(self.graph.ancestors(target))
        if reached.isdisjoint(self.open):
            return self.evaluate(target, rows, {})[0]
        if goal is None:
            return self._upper(target, rows, steps, None)
        first, _ = self.evaluate(target, rows, self.rules[0])
        index = _undecided(first, goal).any(1).nonzero().squeeze(1)
        if len(index) == 0:
            return first
        part = self if len(index) == len(rows) else self._select(index)
        found = part._upper(target, rows[index], steps, goal[index])
        return first.index_put((index,), torch.minimum(first[index], found))

    def _select(self, index: Tensor) -> Deviation:
        return Deviation(self.graph, self.layers.select(index), self.region.select(index))

    def _upper(self, target: str, rows: Tensor, steps: int, goal: Tensor | None) -> Tensor:
        if set(self.graph.ancestors(target)).isdisjoint(self.open):
            return self.evaluate(target, rows, {})[0]  # of a part of the samples
        best, start = self.best_rule(target, rows)
        if not steps:
            return best
        wanted = torch.ones_like(best, dtype=torch.bool) if goal is None else _undecided(best, goal)
        chosen = wanted.nonzero()
        most = max(1, _ELEMENTS // max(layer.anchor[0].numel() for layer in self.layers.values()))
        for part in chosen.split(most) if len(chosen) else ():
            if is_late():
                break
            index = (part[:, 0], part[:, 1])
            found = self._free(target, rows, start, steps, index, None if goal is None else goal[index])
            best = best.index_put(index, torch.minimum(best[index], found))
        return best

    def best_rule(self, target: str, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The smallest bound of the fixed choices of slopes, and for each row the open neurons' slopes that gave it."""
        rules = self._worth_trying(target, rows)
        if len(rules) == 1:
            return self.evaluate(target, rows, rules[0])
        tried = [self.evaluate(target, rows, rule, ball_only=True) for rule in rules]
        values = torch.stack([value for value, _ in tried])
        start = _best_rows([used for _, used in tried], values.argmin(0))
        return values.amin(0) if self.region.low is None else self.evaluate(target, rows, start)[0], start

    @torch.no_grad()
    def _worth_trying(self, target: str, rows: Tensor) -> list[dict[str, Pair]]:
        """The rules, or for many rows those that are best for some of a few."""
        if rows.shape[1] < 4 * _SAMPLE:
            return self.rules
        few = rows[:, :: rows.shape[1] // _SAMPLE]
        values = torch.stack([self.evaluate(target, few, rule, ball_only=True)[0] for rule in self.rules])
        best = values.argmin(0)
        return [rule for i, rule in enumerate(self.rules) if bool((best == i).any())]

    def _free(
        self,
        target: str,
        rows: Tensor,
        start: dict[str, Tensor],
        steps: int,
        index: tuple[Tensor, Tensor],
        goal: Tensor | None,
    ) -> Tensor:
        """The search with free slopes for the rows at ``index``, a sample and a row each, ``(len(index),)``."""
        sample, _ = index
        layers = self._reached(target)
        slopes = {name: line[index] for name, line in self.lines(target, rows, start).items()}
        return FreeSlopes(self.graph, layers, self.region, sample).upper(target, rows[index], slopes, steps, goal)

    def _reached(self, target: str) -> Layers:
        reached = set(self.graph.ancestors(target))
        layers = Layers({name: layer for name, layer in self.layers.items() if name in reached})
        layers.slack = self.layers.slack
        return layers

    def lines(self, target: str, rows: Tensor, start: dict[str, Tensor]) -> dict[str, Tensor]:
        """Slopes of all neurons before ``target``, ``(batch, specs, neurons)``, from those of the open ones."""
        slopes = {}
        for name, layer in self._reached(target).items():
            line = layer.slopes.centre.detach().flatten(1).unsqueeze(1).expand(-1, rows.shape[1], -1)
            slopes[name] = self.open[name].scatter(line, start[name].detach()) if name in start else line
        return slopes

    def evaluate(
        self, target: str, rows: Tensor, slopes: Mapping[str, Pair | Tensor], ball_only: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bound for given slopes, pairs by sign or tensors ``(batch, specs, open)``, and the slopes used.

        With ``ball_only`` the image box is left out at the input, where it costs most.
        """
        batch, specs = rows.shape[:2]
        parts: list[Tensor] = []
        used: dict[str, Tensor] = {}
        errors = RowErrors(self.layers.slack, batch)

        def rule(name: str, cotangent: Tensor) -> Tensor | None:
            if name not in self.layers:
                return None
            line = self.layers[name].slopes.centre.repeat_interleave(specs, dim=0)
            neurons = self.open.get(name)
            if neurons is None:
                return line
            c = neurons.take(cotangent.reshape(batch, specs, -1))
            chosen = slopes[name]
            used[name] = torch.where(c > 0, *chosen) if isinstance(chosen, tuple) else chosen
            parts.append(neurons.support(c, used[name]))
            return neurons.scatter(line.reshape(batch, specs, -1), used[name]).reshape(line.shape)

        collected = pull_back(self.graph, target, rows.flatten(0, 1), rule, errors.visit)
        at_input = collected[self.graph.input].reshape(batch, specs, *self.region.centre.shape[1:])
        return errors.added(sum(parts, self.region.support(at_input, ball_only)), self.graph), used


def _undecided(best: Tensor, goal: Tensor) -> Tensor:
    # a row is 0 at the centre, so that no bound is smaller
    return (best >= goal) & (goal > 0)


def _best_rows(used: list[dict[str, Tensor]], choice: Tensor) -> dict[str, Tensor]:
    """For each row the slopes of the choice that served it best."""
    found = {}
    for name in used[0]:
        stacked = torch.stack([u[name] for u in used])
        index = choice.reshape(1, *choice.shape, 1).expand(1, *stacked.shape[1:])
        found[name] = stacked.gather(0, index).squeeze(0)
    return found


def taken(neurons: OpenNeurons, t: Tensor) -> Tensor:
    """A layer's ``t (batch, *shape)`` at its open neurons, ``(batch, 1, open)``."""
    return t.flatten(1).gather(1, neurons.index).unsqueeze(1)


def _centre(layer: Layer, neurons: OpenNeurons) -> Pair:
    slope = taken(neurons, layer.slopes.centre)
    return slope, slope


def _tangent(layer: Layer, neurons: OpenNeurons) -> Pair:
    slope = taken(neurons, layer.activation.slope_range(layer.anchor, layer.anchor).centre)
    return slope, slope


def _least(layer: Layer, neurons: OpenNeurons) -> Pair:
    """Of both extreme slopes, the chord and the tangent: the one that leaves least over the interval, by sign."""
    run = layer.upper - layer.lower
    rise = layer.activation.value(layer.upper) - layer.activation.value(layer.lower)
    chord = torch.where(run > 0, rise / torch.where(run > 0, run, 1.0), layer.slopes.centre)
    candidates = [
        _tangent(layer, neurons)[0],
        *(taken(neurons, t) for t in (chord, layer.slopes.low, layer.slopes.high)),
    ]
    positive = _smallest(candidates, [_rest(neurons.pieces, s, 1.0) for s in candidates])
    negative = _smallest(candidates, [_rest(neurons.pieces, s, -1.0) for s in candidates])
    return positive, negative


def _rest(pieces: list[Piece], slope: Tensor, sign: float) -> Tensor:
    """``max sign · (f(z) − f(z₀) − slope · t)`` over the interval."""
    best = torch.zeros_like(slope)
    for piece in pieces:
        rate = piece.slope - slope
        for end in (piece.low, piece.high):
            value = sign * (rate * end + piece.offset)
            best = torch.where((piece.low <= piece.high) & (value > best), value, best)
    return best


def _smallest(candidates: list[Tensor], costs: list[Tensor]) -> Tensor:
    index = torch.stack(costs).argmin(0, keepdim=True)
    return torch.stack(candidates).gather(0, index).squeeze(0)
