"""Runs numbered cases: case k of a seed is the same on every machine with the same versions."""

from __future__ import annotations

import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lirpa_lip.errors import LirpaLipError

from .kinds import KINDS
from .oracles import Violation


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        status: ``"held"``, ``"refused"`` (in the package's own words), ``"violated"`` or ``"foreign"`` (any other
            exception).
        note: the method, or the message.
    """

    case: int
    kind: str
    status: str
    note: str

    @property
    def failed(self) -> bool:
        return self.status in ("violated", "foreign")


def kind_of(case: int) -> str:
    """Kinds in turn by their shares."""
    names = [name for name, (_, share) in KINDS.items() for _ in range(share)]
    return random.Random(case).choice(names)


def run_case(seed: int, case: int, kind: str | None = None) -> Outcome:
    kind = kind or kind_of(case)
    rng = random.Random(f"{seed} {kind} {case}")
    torch.manual_seed(rng.randrange(2**31))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome(case, kind, "held", KINDS[kind][0](rng))
    except Violation as error:
        return Outcome(case, kind, "violated", str(error))
    except LirpaLipError as error:
        return Outcome(case, kind, "refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
        return Outcome(case, kind, "foreign", f"{type(error).__name__} at {place}: {error}")


def run(seed: int, first: int, count: int, kind: str | None = None) -> Iterator[Outcome]:
    for case in range(first, first + count):
        yield run_case(seed, case, kind)


def report(outcomes: list[Outcome], seed: int, seconds: float) -> str:
    """Counts by kind, the reasons of refusals, and every failure with the command that repeats it."""
    lines = []
    for kind in sorted({o.kind for o in outcomes}):
        counts = Counter(o.status for o in outcomes if o.kind == kind)
        lines.append(f"{kind:18} " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    reasons = Counter(o.note[:110].replace("\n", " ") for o in outcomes if o.status == "refused")
    lines += [f"refused {n:5} × {reason}" for reason, n in reasons.most_common(25)]
    lines += [
        f"{o.status}: {o.kind}, case {o.case}: {o.note[:300]}   (--seed {seed} --case {o.case} --kind '{o.kind}')"
        for o in outcomes
        if o.failed
    ]
    total = Counter(o.status for o in outcomes)
    lines.append(
        f"seed {seed}: {len(outcomes)} cases in {seconds:.0f} s: " + ", ".join(f"{n} {s}" for s, n in total.items())
    )
    return "\n".join(lines)


def timed(seed: int, first: int, count: int, kind: str | None = None, progress=None) -> tuple[list[Outcome], float]:
    start, outcomes = time.perf_counter(), []
    for outcome in run(seed, first, count, kind):
        outcomes.append(outcome)
        if progress is not None:
            progress(outcome)
    return outcomes, time.perf_counter() - start
