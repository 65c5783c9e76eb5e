"""One instance, decided: attacks and bounds of rising cost, then branching, until its time is used up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import DomainError, InvalidBoundError, LirpaLipError, MethodFailedError, UnsupportedOperatorError
from lirpa_lip.local.limit import until
from lirpa_lip.training.sampling import derived_seed
from lirpa_lip.verify.attack import attack
from lirpa_lip.verify.bounds import Bounded, crown_bounds, local_bounds
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.input_splitting import DIMENSIONS, free_dimensions, split_inputs
from lirpa_lip.verify.network import Network
from lirpa_lip.verify.neuron_splitting import branch, searches
from lirpa_lip.verify.properties import Case, Margins, Property, margins_of
from lirpa_lip.verify.records import Verdict
from lirpa_lip.verify.settings import VerifySettings

#: Steps of the attack that precedes all bounds.
_QUICK = 20
#: Bounding the whole region anew, with the rows of every neuron, takes branching this many times what sdp-crown took.
_ROOT = 2.0
#: What another method may do better at: the instance stays open, and the next stage is tried.
_PASSES_ON = (DomainError, InvalidBoundError, MethodFailedError, UnsupportedOperatorError)


@dataclass
class _Group:
    """Cases of one region, and what is known of them.

    Attributes:
        lower: ``(rows,)``, the best bound of each row so far.
        case_lower: ``(cases,)``, bounds of cases that rest on more than one row.
        upper: the least margin seen.
    """

    cases: tuple[Case, ...]
    margins: Margins
    lower: Tensor
    case_lower: Tensor
    upper: float = math.inf

    @property
    def region(self) -> InputRegion:
        return self.cases[0].region

    def raise_to(self, rows: Tensor, lower: Tensor) -> None:
        self.lower[rows] = torch.maximum(self.lower[rows], lower.to(self.lower))

    @property
    def per_case(self) -> Tensor:
        """``(cases,)``, the best bound of each case's margin."""
        return torch.maximum(self.margins.per_case(self.lower), self.case_lower)

    @property
    def open_cases(self) -> Tensor:
        return ~(self.per_case > 0)

    @property
    def open_rows(self) -> Tensor:
        """Indices of the rows of cases that are not excluded yet."""
        return self.open_cases[self.margins.case].nonzero().squeeze(1)

    @property
    def least(self) -> float:
        return float(self.per_case.min())


@dataclass
class _Work:
    """An instance on its way through the stages."""

    network: Network
    groups: list[_Group]
    settings: VerifySettings
    deadline: float
    seconds: dict[str, float] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    spent: float = 0.0
    counterexample: Tensor | None = None
    output: Tensor | None = None
    failures: list[LirpaLipError] = field(default_factory=list)
    decided_by: str = ""

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    @property
    def left(self) -> list[_Group]:
        return [group for group in self.groups if bool(group.open_cases.any())]

    @property
    def done(self) -> bool:
        return self.counterexample is not None or not self.left


Stage = tuple[str, Callable[[_Work], None]]


def decide_property(
    network: Network, claim: Property, settings: VerifySettings, index: int = 0, started: float | None = None
) -> Verdict:
    """The verdict of one instance.

    Args:
        index: of the instance, which the attack's seeds derive from.
        started: `time.monotonic` at which the time limit began, where it was before this call.

    Raises:
        DataError: the property names outputs that the network lacks.
        LirpaLipError: no method at all can bound this network, with what the first one said.
    """
    begun = time.monotonic() if started is None else started
    work = _Work(network, _grouped(claim, network.outputs), settings, begun + settings.time_limit)
    for name, stage in _stages(work, index):
        if work.done or work.late:
            break
        at = time.monotonic()
        try:
            stage(work)
        except _PASSES_ON as error:
            work.failures.append(error)
        work.seconds[name] = work.seconds.get(name, 0.0) + time.monotonic() - at
        if work.done:
            work.decided_by = name
    if not work.done and work.failures and all(group.least == -math.inf for group in work.left):
        raise work.failures[0]
    return _verdict(work, claim)


def _grouped(claim: Property, outputs: int) -> list[_Group]:
    regions: dict[int, list[Case]] = {}
    for case in claim.cases:
        regions.setdefault(id(case.region), []).append(case)
    groups = []
    for cases in regions.values():
        margins = margins_of(cases, outputs)
        unknown = torch.full((len(cases),), -math.inf, dtype=torch.float64)
        groups.append(_Group(tuple(cases), margins, torch.full_like(margins.d, -math.inf), unknown))
    return groups


def _stages(work: _Work, index: int) -> Iterator[Stage]:
    """In the order in which they are tried, cheap ones first."""
    settings = work.settings
    seed = derived_seed("verify", settings.seed, index)
    yield "attack", _attack(min(_QUICK, settings.pgd_steps), 0, seed)
    yield "local-lip", _local("local-lip", settings.local(0, len(work.groups)))
    # auto_LiRPA's bounds count no rounding of the network as it runs
    boxes = settings.inference is None and not any(group.region.is_ball for group in work.groups)
    thorough = _attack(settings.pgd_steps, settings.restarts, seed + 1)
    small = boxes and settings.branch and all(free_dimensions(g.region) <= DIMENSIONS for g in work.groups)
    if boxes:
        yield "crown", _crown("crown", 0)
    if small:  # cuts of few dimensions do more than better bounds of the whole
        yield "attack", thorough
        yield "input-splitting", _split_inputs
    if settings.optimize:
        yield "sdp-crown", _local("sdp-crown", settings.local(settings.optimize, len(work.groups)))
    if boxes and settings.optimize:
        yield "alpha-crown", _crown("alpha-crown", settings.optimize)
    if not small:
        yield "attack", thorough
    if settings.branch:
        yield "branching", _branch


def _attack(steps: int, restarts: int, seed: int) -> Callable[[_Work], None]:
    def run(work: _Work) -> None:
        for group in work.left:
            open_cases = [case for case, is_open in zip(group.cases, group.open_cases.tolist()) if is_open]
            margins = margins_of(open_cases, work.network.outputs)
            found = attack(work.network, open_cases, margins, steps, restarts, seed=seed, deadline=work.deadline)
            group.upper = min(group.upper, found.least)
            if found.counterexample is not None:
                work.counterexample, work.output = found.counterexample, found.output
                return

    return run


def _split_inputs(work: _Work) -> None:
    """Half of the time that is left, in equal parts for every region."""
    left = work.left
    end = time.monotonic() + (work.deadline - time.monotonic()) / 2
    for place, group in enumerate(left):
        now = time.monotonic()
        share = (end - now) / (len(left) - place)
        if not math.isfinite(share):
            return  # without a time limit there would be no end
        places = group.open_cases.nonzero().squeeze(1)
        cases = tuple(group.cases[k] for k in places.tolist())
        found = split_inputs(work.network, cases, margins_of(cases, work.network.outputs), now + share)
        group.case_lower[places] = torch.maximum(group.case_lower[places], found.lower)
        if found.counterexample is not None:
            work.counterexample, work.output = found.counterexample, found.output
            return


def _branch(work: _Work) -> None:
    """The time that is left, in equal parts for every region; none where it is too short for a search to begin."""
    left = work.left
    if work.deadline - time.monotonic() < _ROOT * work.seconds.get("sdp-crown", 0.0):
        return
    for place, group in enumerate(left):
        now = time.monotonic()
        share = (work.deadline - now) / (len(left) - place)
        if not math.isfinite(share):
            return  # without a time limit there would be no end
        config = work.settings.local(work.settings.optimize, len(work.groups) * searches(group.margins))
        parts = (group.cases, group.margins, group.open_cases, group.lower)
        for found in branch(work.network, *parts, config=config, deadline=now + share):
            group.raise_to(found.rows, found.lower)
            work.kinds.add(found.worth.kind)
            work.spent += found.worth.delta
            if found.counterexample is not None:
                work.counterexample, work.output = found.counterexample, found.output
                return


def _local(method: str, config: LocalLipConfig) -> Callable[[_Work], None]:
    return _bound(lambda work, group, c, d: local_bounds(work.network, group.region, c, d, method, config=config))


def _crown(method: str, steps: int) -> Callable[[_Work], None]:
    return _bound(lambda work, group, c, d: crown_bounds(work.network, group.region, c, d, method, steps=steps))


def _bound(method: Callable[[_Work, _Group, Tensor, Tensor], Bounded]) -> Callable[[_Work], None]:
    def run(work: _Work) -> None:
        for group in work.left:
            rows = group.open_rows
            with until(lambda: work.late):
                found = method(work, group, group.margins.c[rows], group.margins.d[rows])
            group.raise_to(rows, found.lower)
            work.kinds.add(found.certificate)
            work.spent += found.delta
            if work.late:
                return

    return run


def _verdict(work: _Work, claim: Property) -> Verdict:
    lower = min(group.least for group in work.groups)
    upper = min(group.upper for group in work.groups)
    probabilistic = "probabilistic" in work.kinds and work.counterexample is None
    certificate = "probabilistic" if probabilistic else "deterministic"
    if work.counterexample is not None:
        status, word = "refuted", "sat"
    elif not work.left:
        status, word = "certified", "unsat"
    else:
        status, word = "open", "timeout" if work.late else "unknown"
    prediction = None
    if claim.label is not None:
        prediction = int(work.network.original(claim.cases[0].region.centre).argmax())
    return Verdict(
        status=status,  # type: ignore[arg-type]
        word=word,  # type: ignore[arg-type]
        lower=lower,
        upper=upper,
        counterexample=work.counterexample,
        output=work.output,
        certificate=certificate,
        delta=min(1.0, work.spent) if probabilistic else 0.0,
        decided_by=work.decided_by,
        seconds=work.seconds,
        prediction=prediction,
        label=claim.label,
    )
