"""How a search on neurons spends its time, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lirpa_lip.results import Certificate


@dataclass(frozen=True)
class BranchSettings:
    """How the search spends its time; none of it touches validity.

    Attributes:
        root_steps, steps: of descent on the region and on each part.
        rate: of a part's first step, beside the region's.
        elements: most numbers of one batch (parts × neurons).
        most_parts: parts at once in a batch.
        most_waiting: open parts that may wait; where there are more, the search goes on with those that are nearest to
            be closed.
        most_domains: parts that are bounded in all, about.
        retries: times that a part without a kink is descended on again, each twice as long.
        fit_steps: of the search for balls of a row's own, on the region, for rows that are open there; 0 for none.
        fit_rows: most rows that get such balls.
        fit_neurons: with no more neurons and inputs than these there are no such balls: splits decide sooner.
        refine: most numbers of the rows of one layer (rows × neurons) for its intervals to be descended on, too.
    """

    root_steps: int = 100
    steps: int = 15
    rate: float = 0.2
    elements: int = 1 << 19
    most_parts: int = 256
    most_waiting: int = 20_000
    most_domains: int = 1 << 40
    retries: int = 6
    fit_steps: int = 600
    fit_rows: int = 8
    fit_neurons: int = 2048
    refine: int = 1 << 20


@dataclass(frozen=True)
class BranchResult:
    """What is known when the search ends.

    Attributes:
        status: ``"verified"``: every row is positive on the region; else ``"open"``.
        lower: ``(rows,)`` float64, bounds of ``C f + d`` over the region, valid whenever the search was stopped.
        domains: parts that were bounded.
        seconds: that it took.
        counterexample: ``(1, *in)`` float64, a point where a row was seen to be ``<= 0`` in this graph's arithmetic; in
            the region up to rounding, so that it has to be checked on the model itself. None where none was met.
        certificate: of ``lower``, of all rows together.
    """

    status: Literal["verified", "open"]
    lower: Tensor
    domains: int
    seconds: float
    counterexample: Tensor | None
    certificate: Certificate
