"""Domains of branch and bound: their splits, what is known on them, and how a batch of them is bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.jacobian.backward import backward_bounds
from lirpa_lip.jacobian.forward import Forward, Interval, forward_bounds, unsplit
from lirpa_lip.jacobian.moving import moving_slopes
from lirpa_lip.local.point_jacobians import jacobians_at
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region
from lirpa_lip.search.feasibility import LP_INPUTS, Split, contradiction, shrink, split_constraints
from lirpa_lip.search.objectives import Objective, Problem
from lirpa_lip.search.splits import Choice, choices

#: Inputs up to which every Jacobian entry of a domain is tightened by a push of its own.
_ALL_ENTRIES = 64


@dataclass(frozen=True)
class Domain:
    """A closed part of a sample's region, with the best bounds known there.

    Attributes:
        problem: index of the problem.
        upper: bound of the objective on it.
        splits: ``(node, flat index, after, before)``: the neuron's pre-activation lies in ``[after, before]``.
        low, high: box around it, ``(1, *in)``.
        intervals, cotangents: pre-activation and cotangent bounds, with a batch axis of 1.
        choices: neurons to split next, best first; none if the bound does not depend on any.
    """

    problem: int
    upper: float
    splits: tuple[Split, ...]
    low: Tensor
    high: Tensor
    intervals: dict[str, Interval]
    cotangents: dict[str, Interval]
    choices: tuple[Choice, ...] = ()
    bytes: int = 0

    def halves(self, choice: Choice) -> tuple[Domain, Domain]:
        """The two closed halves at a split point, with what is known of the whole."""
        node, index, point = choice
        kept = tuple(s for s in self.splits if s[:2] != (node, index))
        after, before = next((s[2:] for s in self.splits if s[:2] == (node, index)), (-torch.inf, torch.inf))
        sides = ((after, point), (point, before))
        left, right = (replace(self, splits=(*kept, (node, index, *side)), choices=(), bytes=0) for side in sides)
        return left, right


@dataclass
class Evaluator:
    """Bounds batches of domains of one network and region.

    Attributes:
        seed: ``(batch, rows, *out)``.
        crown: linear bounds for pre-activations.
    """

    graph: NetworkGraph
    inputs: Region
    seed: Tensor
    problems: list[Problem]
    objective: Objective
    crown: bool = True
    heuristic: str = "gap"
    infeasible: int = field(default=0, init=False)

    @torch.no_grad()
    def __call__(self, domains: Sequence[Domain]) -> tuple[list[Domain | None], list[float]]:
        """Each domain with its bounds, or ``None`` where it holds no point; and the best value at a point of each."""
        sample = torch.tensor([self.problems[d.problem].sample for d in domains], device=self.seed.device)
        region = self.inputs.select(sample).within(
            *(torch.cat([getattr(d, k) for d in domains]) for k in ("low", "high"))
        )
        splits = [d.splits for d in domains]
        prior_intervals = _stack([d.intervals for d in domains])
        dense = _dense(splits, prior_intervals)
        forward = forward_bounds(self.graph, region, dense, prior_intervals, self.crown)
        points: list[Tensor | None] = [None] * len(domains)
        late: tuple[Tensor, Tensor] | None = None
        dead = forward.empty
        if any(splits):
            a, b = split_constraints(self.graph, region, forward, splits)
            smaller = shrink(region, a, b)
            dead = dead | smaller.empty
            if self.graph[self.graph.input].shape.numel() <= LP_INPUTS:
                region = _kept(smaller, region, dead)
                forward = forward_bounds(self.graph, region, dense, forward.intervals, self.crown)
                dead = dead | forward.empty
                for k in (~dead).nonzero().flatten().tolist():
                    one = torch.tensor([k], device=a.device)
                    gone, points[k] = contradiction(region.select(one), a[k], b[k])
                    dead[k] |= gone
            else:
                region, late = _kept(smaller, region, dead), (a, b)
        alive = (~dead).nonzero().flatten()
        self.infeasible += int(dead.sum())
        answers: list[Domain | None] = [None] * len(domains)
        values = [0.0] * len(domains)
        if len(alive):
            self._backward([domains[k] for k in alive.tolist()], alive, region, forward, points, late, answers, values)
        return answers, values

    def _backward(
        self,
        domains: Sequence[Domain],
        alive: Tensor,
        region: Region,
        forward: Forward,
        points: list[Tensor | None],
        late: tuple[Tensor, Tensor] | None,
        answers: list[Domain | None],
        values: list[float],
    ) -> None:
        """Bounds of the domains that are left; ``late``: constraints to look at where nothing can be split further."""
        forward, region = _select(forward, alive), region.select(alive)
        problems = [self.problems[d.problem] for d in domains]
        seed = torch.stack([self.seed[p.sample, list(p.rows)] for p in problems])
        prior_cotangents = _stack([d.cotangents for d in domains])
        count = self.graph[self.graph.input].shape.numel()
        entries = count if count <= _ALL_ENTRIES else 0
        moving = moving_slopes(self.graph, region, forward)
        result = backward_bounds(
            *(self.graph, forward.slopes, seed, prior_cotangents),
            entries=entries,
            norm=self.objective.norm,
            moving=moving,
        )
        trace: dict[str, Tensor] = {}
        upper = self.objective.upper(self.graph, result, problems, trace)
        picked = choices(self.graph, forward, result, trace, self.heuristic)
        reached = self._values(region, seed, problems, [points[k] for k in alive.tolist()])
        for j, k in enumerate(alive.tolist()):
            if late is not None and not picked[j] and domains[j].splits:
                one = torch.tensor([j], device=alive.device)
                gone, point = contradiction(region.select(one), late[0][k], late[1][k])
                self.infeasible += int(gone)
                if gone:
                    continue
                if point is not None:
                    reached[j] = self._values(region.select(one), seed[j : j + 1], problems[j : j + 1], [point])
            value = float(upper[j])
            value = min(domains[j].upper, value if value == value else float("inf"))
            answers[k] = _one(domains[j], j, value, region, forward, result.cotangents, picked[j])
            values[k] = float(reached[j])

    def _values(self, region: Region, seed: Tensor, problems: list[Problem], points: list[Tensor | None]) -> Tensor:
        """The objective at a point of each domain (of its region, at least): the middle of its box, and a known one."""
        whole = self.inputs.select(torch.tensor([p.sample for p in problems], device=seed.device))
        low, high = region.interval()
        middle = (low + high) / 2
        other = torch.cat([m.unsqueeze(0) if p is None else p for m, p in zip(middle, points)])
        x = whole.project(torch.stack([middle, other], dim=1))
        rows, unknown = jacobians_at(self.graph, x, seed)
        jacobian, good = rows * whole.moves[:, None, None], torch.isfinite(unknown).all(1)
        found = torch.where(good, self.objective.value(jacobian, problems), -torch.inf).amax(1)
        # rounding may not lift a value at a point above the constant
        return found - 1e-9 * found.abs()


def _kept(smaller: Region, region: Region, dead: Tensor) -> Region:
    """The smaller boxes, but the old ones where nothing is left."""
    at = dead.reshape(-1, *[1] * len(region.shape))
    low, high = (torch.where(at, old, new) for old, new in zip(region.interval(), smaller.interval()))
    return replace(region, low=low, high=high)


def _stack(tables: Sequence[dict[str, Interval]]) -> dict[str, Interval]:
    return {
        name: tuple(torch.cat([t[name][end] for t in tables]) for end in (0, 1))
        for name in (tables[0] if tables else {})
    }


def _dense(splits: Sequence[Sequence[Split]], intervals: dict[str, Interval]) -> dict[str, Interval]:
    """Splits as tensors ``(batch, *shape)`` for the nodes that have any."""
    dense: dict[str, Interval] = {}
    for k, own in enumerate(splits):
        for name, index, after, before in own:
            if name not in dense:
                dense[name] = unsplit(intervals[name][0])
            dense[name][0][k].view(-1)[index] = after
            dense[name][1][k].view(-1)[index] = before
    return dense


def _select(forward: Forward, index: Tensor) -> Forward:
    def pick(table: Any, make: Any = tuple):
        return {name: make(t[index] for t in pair) for name, pair in table.items()}

    slopes = {n: type(s)(s.low[index], s.high[index]) for n, s in forward.slopes.items()}
    lines = {n: line.select(index) for n, line in forward.lines.items()}
    slack = {n: t if len(t) == 1 else t[index] for n, t in forward.slack.items()}
    return Forward(pick(forward.intervals), slopes, lines, pick(forward.splits), forward.empty[index], slack)


def _one(
    domain: Domain,
    j: int,
    upper: float,
    region: Region,
    forward: Forward,
    cotangents: Mapping[str, Interval],
    picked: tuple[Choice, ...],
) -> Domain:
    """One row of the batch as a domain of its own; tensors are copied, or the whole batch would stay alive."""
    intervals = {n: tuple(t[j : j + 1].clone() for t in pair) for n, pair in forward.intervals.items()}
    bounds = {n: tuple(t[j : j + 1].clone() for t in pair) for n, pair in cotangents.items()}
    low, high = (t[j : j + 1].clone() for t in region.interval())
    tensors = [low, high, *(t for table in (intervals, bounds) for pair in table.values() for t in pair)]
    size = sum(t.numel() * t.element_size() for t in tensors)
    return Domain(domain.problem, upper, domain.splits, low, high, intervals, bounds, picked, size)
