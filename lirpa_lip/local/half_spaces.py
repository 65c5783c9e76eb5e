"""Rows bounded on parts of a region that splits of neurons have cut out: one Lagrangian over ball, box and half-spaces.

A part is what is left of the region where some pre-activations are known to lie on one side of a kink, ``z_i >= k`` or
``z_i <= k``. Each such half-space has a multiplier β >= 0 of its own, as in β-CROWN (Wang et al., NeurIPS 2021), here
under ℓ₂: its row ``±β e_i`` joins what is pulled back through the layers before it, and ``±β (z_i − k) >= 0`` is what
the layer itself gains. With slopes g the row that leaves an activation's input is ``G = c g + b``, b = ±β, and a layer
of deviations t = z − z₀ adds at most

    λ (Lip(S^½ z) eps)² + μ (Lip(R^½ z) eps)²
        + Σ_i max { c_i (f(z₀_i + t_i) − f(z₀_i)) − G_i t_i − (λ S_i + μ R_i) t_i² :  l_i <= z₀_i + t_i <= u_i }

to it, where ``[l, u]`` is the *cut* interval: on it ``±β (z − k) >= 0``, so that this is at most what the half-space's
own term gives, and valid for b of any sign and size (b < 0 is the multiplier of the interval's other end). Balls and
rates are those of the whole region, which hold on its parts; a part takes no norm. A row may bring a third ball of its
own for each layer (`lirpa_lip.local.row_balls`). By weak duality every choice of
slopes, b, λ >= 0 and μ >= 0 is a bound; `PartBounds.descend` only looks for a good one. The centre need not lie in the
part, so that bounds may be negative: a part on which the row stays below its value at the centre, or that is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lirpa_lip.local.layers import Layers
from lirpa_lip.local.limit import is_late
from lirpa_lip.local.linearised import pull_back
from lirpa_lip.local.part_multipliers import Cuts, Descent, Multipliers, RowBalls
from lirpa_lip.local.part_neurons import PartNeurons
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import RowErrors, positive_slack, widest
from lirpa_lip.regions.region import Region
from lirpa_lip.regions.support import SupportSearch, support_point

#: First step on slopes, on β in units of a layer's rows, and on the logarithms of multipliers; all fall to a fifth.
_SLOPE_STEP, _OFFSET_STEP, _LOG_STEP, _LAST_STEP = 0.1, 0.1, 0.5, 0.2
_BETAS = (0.8, 0.99)
#: Of neurons that no half-space cuts: there are many, of whose β most serve for nothing, and steps of them are noise.
_UNCUT = 0.03
#: Range of the logarithms of multipliers, far inside what float64 holds.
_LOG_RANGE = 150.0


class PartBounds:
    """Upper bounds of ``vᵀ(z(x) − z(centre))`` over parts of the region of one sample, a row v for each part.

    Args:
        layers, region: of one sample.
        target: the node that rows are of.
    """

    def __init__(self, graph: NetworkGraph, layers: Layers, region: Region, target: str) -> None:
        reached = set(graph.ancestors(target))
        self.graph, self.region, self.target = graph, region, target
        self.layers = {name: layer for name, layer in layers.items() if name in reached}
        self.slack = layers.slack

    def whole(self, parts: int) -> dict[str, Cuts]:
        """The region itself, as often as asked for."""
        return {
            name: Cuts(*(t.flatten(1).expand(parts, -1) for t in (layer.lower, layer.upper)))
            for name, layer in self.layers.items()
        }

    def descend(
        self,
        rows: Tensor,
        cuts: Mapping[str, Cuts],
        start: Multipliers,
        steps: int,
        goal: Tensor,
        *,
        rate: float = 1.0,
        own: RowBalls | None = None,
    ) -> Descent:
        """Steps of descent on all multipliers of all parts at once.

        Args:
            rows: ``(parts, *shape)`` of the target.
            cuts: of every activation before it; no part may be empty.
            goal: ``(parts,)``; the search ends once all parts lie below it.
            rate: of the first step, beside that of a search from rules.
            own: a ball more for each part; ``start`` has a multiplier for it.
        """
        neurons = {
            name: PartNeurons(layer, self.region.eps, cuts[name], None if own is None else own.of(name))
            for name, layer in self.layers.items()
        }
        units = self._units(rows, start.slopes, cuts)
        slopes, logs = ({n: t.clone() for n, t in table.items()} for table in (start.slopes, start.logs))
        shares = {n: t / units[n] for n, t in start.offsets.items()}
        tables = ((slopes, _SLOPE_STEP), (shares, _OFFSET_STEP), (logs, _LOG_STEP))
        groups = [{"params": list(table.values()), "lr": rate * step} for table, step in tables]
        optimizer = torch.optim.Adam(groups, betas=_BETAS)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, _LAST_STEP ** (1 / max(1, steps - 1)))
        variables = [t for table, _ in tables for t in table.values()]
        best, support = torch.full_like(goal, torch.inf), SupportSearch(self.region)
        for _ in range(steps if variables else 0):
            if is_late():
                break
            for t in variables:
                t.requires_grad_()
            with torch.enable_grad():
                value, certified = self._evaluate(rows, neurons, self._of(slopes, shares, logs, units), support)
                value.sum().backward(inputs=variables)
            best = _smaller(best, certified)
            if bool((best < goal).all()):
                break
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            self._project(slopes, logs)
        with torch.no_grad():
            slopes, shares, logs = ({n: t.detach() for n, t in table.items()} for table in (slopes, shares, logs))
            found = self._of(slopes, shares, logs, units)
            return self._answer(rows, neurons, found, best)

    @staticmethod
    def _of(
        slopes: dict[str, Tensor], shares: dict[str, Tensor], logs: dict[str, Tensor], units: Mapping[str, Tensor]
    ) -> Multipliers:
        return Multipliers(slopes, {n: t * units[n] for n, t in shares.items()}, logs)

    @torch.no_grad()
    def each_row(self, rows: Tensor, slopes: Mapping[str, Tensor], visit: Callable[[str, Tensor], None]) -> None:
        """Shows every activation's rows c ``(parts, neurons)``, pulled back through slopes."""

        def rule(name: str, cotangent: Tensor) -> Tensor | None:
            if name not in slopes:
                return None
            visit(name, cotangent.flatten(1))
            return slopes[name].reshape(cotangent.shape)

        pull_back(self.graph, self.target, rows, rule)

    def _units(self, rows: Tensor, slopes: Mapping[str, Tensor], cuts: Mapping[str, Cuts]) -> dict[str, Tensor]:
        """The size of a layer's rows, in which its β are counted, ``(parts, neurons)``; less where nothing is cut."""
        units = {}

        def visit(name: str, c: Tensor) -> None:
            size = c.square().mean(1, keepdim=True).sqrt()
            layer = self.layers[name]
            whole = (cuts[name].lower == layer.lower.flatten(1)) & (cuts[name].upper == layer.upper.flatten(1))
            units[name] = torch.where(size > 0, size, 1.0) * torch.where(whole, _UNCUT, 1.0)

        self.each_row(rows, slopes, visit)
        return units

    def _evaluate(
        self,
        rows: Tensor,
        neurons: Mapping[str, PartNeurons],
        given: Multipliers,
        support: Callable[[Tensor], Tensor],
        trace: _Trace | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The dual, differentiable, and the bound that it gives with all rounding, each ``(parts,)``."""
        value: Tensor | float = 0.0
        size: Tensor | float = 0.0
        entering: dict[str, Tensor] = {}
        for name, offset in given.offsets.items():
            layer = self.layers[name]
            found = offset.reshape(-1, *layer.anchor.shape[1:])
            entering[layer.parent] = entering[layer.parent] + found if layer.parent in entering else found

        def rule(name: str, cotangent: Tensor) -> Tensor | None:
            nonlocal value, size
            if name not in neurons:
                return None
            c, slope = cotangent.flatten(1), given.slopes[name]
            row = c * slope + given.offsets[name]
            curvature, cost = neurons[name].curvature(given.logs[name])
            at = neurons[name].inner(c, row, curvature)
            # the maximisers may be held: each is where its derivative is 0, or at an end
            value = value + cost + (c * at.rise - row * at.t - curvature * at.t.square()).sum(-1)
            with torch.no_grad():
                moved = (c * at.rise).abs() + 2 * (c * at.slope * at.t).abs() + (row * at.t).abs()
                size = size + cost + (moved + curvature * at.t.square()).sum(-1)
            if trace is not None:
                trace.add(name, c, row, curvature)
            return slope.reshape(cotangent.shape)

        errors = RowErrors(self.slack, 1)
        collected = pull_back(self.graph, self.target, rows, rule, errors.visit, entering=entering)
        at_input = collected.get(self.graph.input)
        if at_input is not None:
            moved = support(at_input)
            value, size = value + moved, size + moved.detach()
            if trace is not None:
                trace.at_input = at_input
        value = value + rows.new_zeros(len(rows))
        lost = positive_slack(2 * widest(self.graph), self.graph.dtype) * size
        total = errors.total.reshape(-1) if isinstance(errors.total, Tensor) else errors.total
        return value, (value.detach() + total + lost) * 1.0

    def _answer(self, rows: Tensor, neurons: Mapping[str, PartNeurons], found: Multipliers, best: Tensor) -> Descent:
        trace = _Trace()
        _, certified = self._evaluate(rows, neurons, found, self._support, trace)
        x = self.region.centre.expand(len(rows), *self.region.centre.shape[1:])
        if trace.at_input is not None:
            x = support_point(self.region, trace.at_input)
        values = self.graph.values(x)
        gaps = {
            name: neurons[name].gaps(values[self.layers[name].parent].flatten(1), *part)
            for name, part in trace.parts.items()
        }
        strength = {name: part[0].abs() for name, part in trace.parts.items()}
        return Descent(_smaller(best, certified), found, x, gaps, strength)

    def _support(self, at_input: Tensor) -> Tensor:
        return self.region.support(at_input.unsqueeze(0)).squeeze(0)

    @torch.no_grad()
    def _project(self, slopes: dict[str, Tensor], logs: dict[str, Tensor]) -> None:
        for name, slope in slopes.items():
            found = self.layers[name].slopes
            low, high = found.low.clamp(max=0).flatten(1), found.high.clamp(min=0).flatten(1)
            slope.copy_(torch.minimum(torch.maximum(slope, low), high))
        for log in logs.values():
            log.clamp_(-_LOG_RANGE, _LOG_RANGE)


class _Trace:
    """Rows of an evaluation: at the input, and c, G and the curvature of every activation."""

    def __init__(self) -> None:
        self.at_input: Tensor | None = None
        self.parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, name: str, c: Tensor, row: Tensor, curvature: Tensor) -> None:
        self.parts[name] = (c, row, curvature)


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    """The minimum that prefers a to NaN."""
    return torch.where(b < a, b, a)
