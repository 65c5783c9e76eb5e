"""Branch and bound over the slopes of open activations: best first, in batches, valid whenever it is stopped.

A domain is split at a kink into two closed halves, which together hold every Clarke Jacobian of the whole (see
`Activation.clarke_range`), so the largest bound among a problem's waiting and finished domains is always one for the
problem. Nothing is thrown away without a proof that it holds no point.

Source: Shi et al., NeurIPS 2022, section 3.4, with re-bounding of pre-activations and proofs of infeasibility added.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.jacobian.constants import Bounds
from lirpa_lip.jacobian.forward import Forward
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region
from lirpa_lip.search.domains import Domain, Evaluator
from lirpa_lip.search.objectives import Objective, Problem, RowNorm, WholeNorm


@dataclass(frozen=True)
class Progress:
    """Where the search stands: bounds of every answer, domains waiting, visited and shown empty, seconds spent."""

    upper: Tensor
    lower: Tensor
    waiting: int
    visited: int
    infeasible: int
    seconds: float


@dataclass
class State:
    """All of a search that is needed to go on with it; `branch_and_bound_file` keeps it on disk.

    Attributes:
        waiting: domains to be split.
        finished: per problem, the largest bound among domains that need no splitting or cannot be split.
        lower: per answer.
    """

    fingerprint: str
    waiting: list[Domain]
    finished: list[float]
    lower: list[float]
    visited: int = 0
    infeasible: int = 0
    seconds: float = 0.0


@dataclass
class Search:
    """One run over given problems.

    Args:
        evaluator: bounds domains.
        targets: number of answers.
        options: budgets, batch and tolerance.
    """

    evaluator: Evaluator
    targets: int
    options: ClarkeOptions
    state: State
    reason: str = field(default="", init=False)

    def run(self) -> State:
        """Splits until every answer is settled or a budget is spent; returns the state it ends in."""
        heap = [(-self._priority(d), k, d) for k, d in enumerate(self.state.waiting)]
        heapq.heapify(heap)
        count, started, spent = len(heap), time.monotonic(), self.state.seconds
        used = sum(d.bytes for d in self.state.waiting)
        reported = -math.inf
        in_hand: list[Domain] = []
        try:
            while heap:
                self.state.seconds = spent + time.monotonic() - started
                self.reason = self._spent(time.monotonic() - started, len(heap), used)
                if self.reason:
                    break
                in_hand = self._take(heap)
                used -= sum(d.bytes for d in in_hand)
                for child in self._split(in_hand):
                    heapq.heappush(heap, (-self._priority(child), count, child))
                    count, used = count + 1, used + child.bytes
                in_hand = []
                if self.options.progress and time.monotonic() - reported > 0.5:
                    reported = time.monotonic()
                    self.options.progress(self.progress([h[2] for h in heap]))
        except KeyboardInterrupt:
            self.reason = "interrupted"
        self.reason = self.reason or "settled"
        self.state.waiting = [h[2] for h in heap] + in_hand
        self.state.seconds = spent + time.monotonic() - started
        return self.state

    def _spent(self, seconds: float, waiting: int, used: int) -> str:
        limits = self.options
        if seconds >= limits.time_limit:
            return "time"
        if self.state.visited >= limits.max_domains or waiting >= limits.max_domains:
            return "domains"
        return "memory" if used >= limits.memory else ""

    def _priority(self, domain: Domain) -> float:
        lower = self.state.lower[self.evaluator.problems[domain.problem].target]
        return domain.upper / lower if lower > 1e-300 else domain.upper * 1e300 if domain.upper > 0 else domain.upper

    def _settled(self, domain: Domain) -> bool:
        lower = self.state.lower[self.evaluator.problems[domain.problem].target]
        return self.evaluator.objective.settled(domain.upper, lower, self.options.tolerance)

    def _finish(self, domain: Domain) -> None:
        self.state.finished[domain.problem] = max(self.state.finished[domain.problem], domain.upper)

    def _take(self, heap: list) -> list[Domain]:
        taken: list[Domain] = []
        while heap and len(taken) < self.options.batch:
            domain = heapq.heappop(heap)[2]
            if self._settled(domain) or not domain.choices:
                self._finish(domain)
            else:
                taken.append(domain)
        return taken

    def _split(self, domains: list[Domain]) -> list[Domain]:
        """The children that wait; the others are finished or empty."""
        tried = 4 if self.options.heuristic == "strong" else 1
        plans = [[d.halves(choice) for choice in d.choices[:tried]] for d in domains]
        flat = [half for plan in plans for pair in plan for half in pair]
        if not flat:
            return []
        answers, values = self.evaluator(flat)
        for half, value in zip(flat, values):
            target = self.evaluator.problems[half.problem].target
            self.state.lower[target] = max(self.state.lower[target], value)
        self.state.visited += len(flat)
        self.state.infeasible = self.evaluator.infeasible
        waiting, at = [], 0
        for plan in plans:
            pairs = [answers[at + 2 * k : at + 2 * k + 2] for k in range(len(plan))]
            at += 2 * len(plan)
            for child in min(pairs, key=_worst):
                if child is None:
                    continue
                if self._settled(child) or not child.choices:
                    self._finish(child)
                else:
                    waiting.append(child)
        return waiting

    def upper(self, waiting: list[Domain]) -> list[float]:
        """Bounds of every problem from the domains that are left."""
        upper = list(self.state.finished)
        for domain in waiting:
            upper[domain.problem] = max(upper[domain.problem], domain.upper)
        return upper

    def progress(self, waiting: list[Domain]) -> Progress:
        answers = [-math.inf] * self.targets
        for problem, value in zip(self.evaluator.problems, self.upper(waiting)):
            answers[problem.target] = max(answers[problem.target], value)
        return Progress(
            torch.tensor(answers, dtype=torch.float64),
            torch.tensor(self.state.lower, dtype=torch.float64),
            len(waiting),
            self.state.visited,
            self.state.infeasible,
            self.state.seconds,
        )


def _worst(pair: list[Domain | None]) -> tuple[float, float]:
    values = sorted((-math.inf if d is None else d.upper for d in pair), reverse=True)
    return values[0], values[1]


def start(
    evaluator: Evaluator,
    forward: Forward,
    cotangents: dict,
    upper: list[float],
    lower: list[float],
    *,
    fingerprint: str,
) -> State:
    """The state before any split: one domain for each problem, bounded once more to learn what to split."""
    roots = []
    for k, problem in enumerate(evaluator.problems):
        s, rows = problem.sample, list(problem.rows)
        intervals = {n: tuple(t[s : s + 1] for t in pair) for n, pair in forward.intervals.items()}
        bounds = {n: tuple(t[s : s + 1, rows] for t in pair) for n, pair in cotangents.items()}
        low, high = (t[s : s + 1] for t in evaluator.inputs.interval())
        roots.append(Domain(k, upper[k], (), low, high, intervals, bounds))
    waiting: list[Domain] = []
    for k in range(0, len(roots), 8):
        answers, values = evaluator(roots[k : k + 8])
        # a region is never empty: rounding alone could say so
        waiting += [root if answer is None else answer for root, answer in zip(roots[k:], answers)]
        for root, value in zip(roots[k:], values):
            target = evaluator.problems[root.problem].target
            lower[target] = max(lower[target], value)
    return State(fingerprint, waiting, [-math.inf] * len(roots), lower)


def fingerprint(graph: NetworkGraph, inputs: Region, seed: Tensor, *settings: object) -> str:
    """What a state must agree on to be resumed: network, region, specification and settings."""
    digest = hashlib.sha256(repr((settings, inputs.radius is None)).encode())
    tensors = [*inputs.interval(), inputs.centre, seed, *([] if inputs.radius is None else [inputs.radius])]
    for node in graph:
        digest.update(f"{node.name} {node.operator} {node.parents}".encode())
        tensors += [t for m in node.maps or () for t in m.tensors()] + ([] if node.bias is None else [node.bias])
        if node.activation is not None:  # its kinks and slopes may be plain numbers: they show in its values
            grid = torch.linspace(-4, 4, 9, dtype=graph.dtype, device=graph.device)
            tensors.append(node.activation.value(grid.reshape(-1, *[1] * len(node.shape)).expand(-1, *node.shape)))
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Tightened(NamedTuple):
    """Bounds that branch and bound has ended with, and a report of how it went."""

    upper: Tensor
    lower: Tensor
    report: dict


class BranchAndBound:
    """Branch and bound for the constants of `clarke.clarke_lipschitz`, whose arguments these are."""

    def __init__(
        self, graph: NetworkGraph, inputs: Region, seed: Tensor, whole: bool, norm: float, *, options: ClarkeOptions
    ) -> None:
        batch, rows = seed.shape[:2]
        self.shape = (batch,) if whole else (batch, rows)
        objective: Objective = RowNorm(norm)
        if whole and norm != math.inf:
            objective = WholeNorm(norm)
            problems = [Problem(s, tuple(range(rows)), s) for s in range(batch)]
        else:
            problems = [Problem(s, (r,), s if whole else s * rows + r) for s in range(batch) for r in range(rows)]
        heuristic = "gap" if options.heuristic == "strong" else options.heuristic
        crown = options.intermediate != "ibp"
        self.evaluator = Evaluator(graph, inputs, seed, problems, objective, crown, heuristic)
        self.options = options
        self.key = fingerprint(graph, inputs, seed, whole, norm)

    def run(self, forward: Forward, bounds: Bounds, upper: Tensor, lower: Tensor) -> Tightened:
        """Tighter upper and lower bounds, and a report; ``bounds`` are those of the root."""
        problems = self.evaluator.problems
        if self.options.resume is not None:
            state = replace(self.options.resume, waiting=list(self.options.resume.waiting))
            if state.fingerprint != self.key:
                raise ConfigError("resume= holds the state of another network, region, specification or norm.")
            state.finished, state.lower = list(state.finished), list(state.lower)
            state.lower = [max(a, b) for a, b in zip(state.lower, lower.flatten().tolist())]
        else:
            matrix = isinstance(self.evaluator.objective, WholeNorm)
            first = [float(bounds.whole[p.sample] if matrix else bounds.rows[p.sample, p.rows[0]]) for p in problems]
            assert bounds.backward is not None
            cotangents = bounds.backward.cotangents
            state = start(self.evaluator, forward, cotangents, first, lower.flatten().tolist(), fingerprint=self.key)
        self.evaluator.infeasible = state.infeasible
        search = Search(self.evaluator, lower.numel(), self.options, state)
        state = search.run()
        last = search.progress(state.waiting)
        # a problem without any domain left was proved empty piece by piece, which only rounding can do to a region
        found = torch.where(torch.isfinite(last.upper), last.upper, upper.flatten().cpu()).reshape(self.shape)
        report = {
            "state": state,
            "stopped": search.reason,
            "visited": state.visited,
            "infeasible": state.infeasible,
            "waiting": len(state.waiting),
            "seconds": state.seconds,
        }
        least = torch.minimum(found.to(upper), upper)
        return Tightened(least, torch.maximum(last.lower.reshape(self.shape).to(lower), lower), report)
