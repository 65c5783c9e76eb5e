"""Branch and bound for margins: parts of a region, cut out by half-spaces of neurons, until every part is decided.

The region is bounded once (`lirpa_lip.local.propagate`), with all the norms that are ever taken, so that the whole
search has the certificate of that one pass. A part whose bound is not positive is split at a kink of one neuron
into two closed parts; each is bounded by descent from its parent's multipliers. The smallest bound over all parts is a
bound for the region whenever the search is stopped. A part is closed only when its bound is positive, which on an
empty part some multipliers show as well, or when its intervals exclude each other.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import CertificateError, ShapeError
from lirpa_lip.local.bounds import prepare
from lirpa_lip.local.deviation import Deviation
from lirpa_lip.local.free_slopes import FreeNeurons
from lirpa_lip.local.half_spaces import PartBounds
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.limit import until
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.part_multipliers import Cuts, Descent, Multipliers, RowBalls
from lirpa_lip.local.propagate import planned_norms
from lirpa_lip.local.row_balls import BallSearch
from lirpa_lip.local.rows import check_specification, inference_error
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import positive_slack
from lirpa_lip.precision import next_below
from lirpa_lip.regions.region import Region
from lirpa_lip.verify.branch_root import root_layers
from lirpa_lip.verify.branch_settings import BranchResult, BranchSettings
from lirpa_lip.verify.splits import HalfSpace, Split, choices, cut


@dataclass(frozen=True)
class _Part:
    """A part of the region for one row: bound, half-spaces, multipliers (of one part), and what to split next."""

    row: int
    lower: float
    half_spaces: tuple[HalfSpace, ...]
    multipliers: Multipliers
    splits: tuple[Split, ...] = ()
    tries: int = 0


def decide(
    bounded: Any,
    x: Any,
    c: Tensor,
    d: Tensor | None = None,
    *,
    time_limit: float,
    settings: BranchSettings | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BranchResult:
    """Whether ``C f + d > 0`` in every row on a region.

    Args:
        bounded: a `BoundedModule`; its `LocalLipConfig` says what norms must be worth.
        x: one sample's region, as for ``compute_bounds``: an ℓ₂ ball, cut by a box where it has one. A box (ℓ∞) is
            cut out of the ball around it.
        c: ``(rows, outputs)``, or ``(1, rows, outputs)``.
        d: ``(rows,)``, zeros by default.
        time_limit: seconds, at which the search stops between two steps of descent; the first pass over the region is
            not interrupted.
        clock: that counts them, from any moment on; `time.process_time` counts the work of this process alone.

    Raises:
        ShapeError: more than one sample, or ``C`` or ``d`` does not fit.
        CertificateError: the settings ask for estimates.
    """
    begun = clock()
    config = LocalLipConfig.from_options(bounded.bound_opts)
    if config.is_estimate:
        raise CertificateError("an estimate decides nothing: choose auto, deterministic or probabilistic.")
    deadline = begun + time_limit
    with torch.no_grad(), until(lambda: clock() >= deadline):
        graph, region, dtype = prepare(bounded, x, config)
        if len(region.eps) != 1:
            raise ShapeError(f"branching decides one sample at a time; the region has {len(region.eps)}.")
        rows = check_specification(c.unsqueeze(0) if c.ndim == 2 else c, 1, graph)
        offset = rows.new_zeros(rows.shape[1]) if d is None else d.to(rows).reshape(-1)
        if len(offset) != rows.shape[1]:
            raise ShapeError(f"d has {len(offset)} entries for {rows.shape[1]} rows of C.")
        settings = settings or BranchSettings()
        fitted = min(settings.fit_rows, rows.shape[1]) * len(list(graph.activations))
        norm = NormBudget(config, 2 * planned_norms(graph, config) + fitted)
        layers = root_layers(graph, region, config, norm, settings.refine)
        lost = inference_error(graph, rows, layers, config, dtype)[0]
        search = _Search(graph, region, layers, rows[0], offset, lost, norm, settings, clock, deadline)
        search.run()
    lower = search.lower
    verified = bool((lower > 0).all())
    return BranchResult(
        "verified" if verified else "open",
        lower,
        search.domains,
        clock() - begun,
        None if verified else search.counterexample,
        norm.worth,
    )


@dataclass
class _Search:
    """The state of one search."""

    graph: NetworkGraph
    region: Region
    layers: Layers
    rows: Tensor
    offset: Tensor
    lost: Tensor
    norm: NormBudget
    settings: BranchSettings
    clock: Callable[[], float]
    deadline: float
    domains: int = 0
    counterexample: Tensor | None = None
    closed: list[float] = field(default_factory=list)
    waiting: list[tuple[float, int, _Part]] = field(default_factory=list)
    own: RowBalls | None = None

    def __post_init__(self) -> None:
        count = len(self.rows)
        self.bounds = PartBounds(self.graph, self.layers, self.region, self.graph.output)
        self.whole = self.bounds.whole(1)
        self.order = itertools.count()
        self.closed = [math.inf] * count
        centre = self.graph.values(self.region.centre)[self.graph.output].flatten()
        self.at = self.rows @ centre
        # of the row's product with the value at the centre, and of the last additions
        self.slack = positive_slack(self.rows.shape[1], self.rows.dtype)
        self.size = self.rows.abs() @ centre.abs() + self.offset.abs()
        self.neurons = sum(t.anchor[0].numel() for t in self.layers.values()) + self.region.centre[0].numel()
        self.batch = max(2, min(self.settings.most_parts, self.settings.elements // max(1, self.neurons)))

    @property
    def lower(self) -> Tensor:
        """Bounds of every row, of all parts there are."""
        least = list(self.closed)
        for _, _, part in self.waiting:
            least[part.row] = min(least[part.row], part.lower)
        return torch.tensor(least, dtype=self.rows.dtype)

    @property
    def _goes_on(self) -> bool:
        late = self.clock() >= self.deadline or self.domains >= self.settings.most_domains
        return bool(self.waiting) and self.counterexample is None and not late

    def run(self) -> None:
        self._start()
        if self._goes_on and self.settings.fit_steps and self.neurons > self.settings.fit_neurons:
            self._fit()
        while self._goes_on:
            taken = self._take()
            children = [half for part in taken for half in self._halves(part)]
            open_ = [part for part in children if part is not None]
            if not open_:
                break
            for first in range(0, len(open_), self.batch):
                self._bound(open_[first : first + self.batch])

    def _start(self) -> None:
        """Every row on the whole region."""
        index = torch.arange(len(self.rows))
        for part in index.split(self.batch):
            self._settle([_Part(int(r), -math.inf, (), Multipliers({}, {}, {})) for r in part], *self._first(part))

    def _first(self, index: Tensor) -> tuple[Descent, dict[str, Cuts]]:
        shape = self.graph[self.graph.output].shape
        rows = -self.rows[index].reshape(-1, *shape)
        deviation = Deviation(self.graph, self.layers, self.region)
        specs = rows.unsqueeze(0)
        _, rule = deviation.best_rule(self.graph.output, specs)
        slopes = {n: t[0].clone() for n, t in deviation.lines(self.graph.output, specs, rule).items()}
        logs: dict[str, Tensor] = {}
        sample = torch.zeros(len(rows), dtype=torch.long)

        def visit(name: str, c: Tensor) -> None:
            neurons = FreeNeurons.of(self.layers[name], self.region.eps, sample)
            logs[name] = neurons.multipliers(c.unsqueeze(1), slopes[name].unsqueeze(1)).squeeze(1)

        self.bounds.each_row(rows, slopes, visit)
        start = Multipliers(slopes, {n: torch.zeros_like(t) for n, t in slopes.items()}, logs)
        cuts = cut(self.whole, [()] * len(rows))
        return self.bounds.descend(rows, cuts, start, self.settings.root_steps, self._goal(index)), cuts

    def _fit(self) -> None:
        """Balls of their own for the rows that are open, for at most half of the time that is left."""
        balls = BallSearch(self.graph, self.layers, self.region, self.graph.output)
        if not balls.possible:
            return
        end = (self.clock() + self.deadline) / 2
        parts = [part for _, _, part in sorted(self.waiting)]
        self.waiting = []
        none = {n: (torch.zeros_like(t.lower), torch.zeros_like(t.lower[:, 0])) for n, t in self.whole.items()}
        found = [none] * len(self.rows)
        for k, part in enumerate(parts):
            multipliers = part.multipliers.to(self.rows.dtype)
            if k < self.settings.fit_rows and self.clock() < end:
                row = -self.rows[part.row].reshape(1, *self.graph[self.graph.output].shape)
                goal = float(self._goal(torch.tensor([part.row])))
                with until(lambda: self.clock() >= end):
                    slopes, weights = balls.fit(row, self.whole, multipliers, steps=self.settings.fit_steps, goal=goal)
                found[part.row], logs = balls.certified(weights, self.norm)
                multipliers = multipliers.with_ball(logs, slopes)
            else:
                multipliers = multipliers.with_ball(
                    {n: torch.zeros_like(t[:, :1]) for n, t in multipliers.logs.items()}
                )
            parts[k] = replace(part, multipliers=multipliers)
        self.own = RowBalls.join(found)
        for first in range(0, len(parts), self.batch):
            self._bound(parts[first : first + self.batch], self.settings.root_steps)

    def _goal(self, index: Tensor) -> Tensor:
        """What a bound of ``−C (f − f(centre))`` must stay below for the row to be positive."""
        goal = self.at[index] + self.offset[index] - self.lost[index]
        return goal - 4 * self.slack * (self.size[index] + goal.abs())

    def _lower(self, index: Tensor, upper: Tensor) -> Tensor:
        """Bounds of ``C f + d`` from those of the deviations."""
        value = self.at[index] + self.offset[index] - self.lost[index] - upper
        value = next_below(value - self.slack * (self.size[index] + upper.abs() + self.lost[index]))
        return torch.where(torch.isnan(value), -torch.inf, value)

    def _take(self) -> list[_Part]:
        """The parts to be split next: those with the smallest bounds, or the largest where too many wait."""
        count = max(1, self.batch // 2)
        if len(self.waiting) > self.settings.most_waiting:
            self.waiting.sort()
            taken, self.waiting = self.waiting[-count:], self.waiting[:-count]
            heapq.heapify(self.waiting)
        else:
            taken = [heapq.heappop(self.waiting) for _ in range(min(count, len(self.waiting)))]
        return [part for _, _, part in taken]

    def _halves(self, part: _Part) -> list[_Part]:
        if not part.splits:
            return [replace(part, tries=part.tries + 1)]
        split = part.splits[0]
        return [
            replace(part, half_spaces=(*part.half_spaces, HalfSpace(split, side)), splits=(), tries=0)
            for side in (False, True)
        ]

    def _bound(self, parts: Sequence[_Part], steps: int | None = None) -> None:
        index = torch.tensor([part.row for part in parts])
        cuts = cut(self.whole, [part.half_spaces for part in parts])
        start = Multipliers.join([part.multipliers for part in parts]).to(self.rows.dtype)
        rows = -self.rows[index].reshape(-1, *self.graph[self.graph.output].shape)
        steps = steps or self.settings.steps * 2 ** max(part.tries for part in parts)
        own = None if self.own is None else self.own.select(index)
        found = self.bounds.descend(rows, cuts, start, steps, self._goal(index), rate=self.settings.rate, own=own)
        self._settle(parts, found, cuts)

    def _settle(self, parts: Sequence[_Part], found: Descent, cuts: dict[str, Cuts]) -> None:
        """Closes parts, or puts them back with what was found."""
        index = torch.tensor([part.row for part in parts])
        lower = self._lower(index, found.upper).tolist()
        picked = choices(self.layers, cuts, found, 1)
        kept = found.multipliers.to(torch.float32)
        self.domains += len(parts)
        self._look(found.x)
        for k, part in enumerate(parts):
            value = max(lower[k], part.lower)
            if value > 0 or (not picked[k] and part.tries >= self.settings.retries):
                self.closed[part.row] = min(self.closed[part.row], value)
                continue
            own = kept.select(torch.tensor([k]))
            self._push(replace(part, lower=value, multipliers=own, splits=picked[k]))

    def _push(self, part: _Part) -> None:
        heapq.heappush(self.waiting, (part.lower, next(self.order), part))

    def _look(self, x: Tensor) -> None:
        """Whether a point that some bound speaks for violates a row."""
        out = self.graph.values(x)[self.graph.output].flatten(1)
        margin = (out @ self.rows.T + self.offset).amin(1)
        worst = int(margin.argmin())
        if float(margin[worst]) <= 0:
            self.counterexample = x[worst : worst + 1].clone()
