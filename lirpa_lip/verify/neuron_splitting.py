"""Branching on neurons, for whatever region: each open row by itself, all rows of single-row cases together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.results import Certificate
from lirpa_lip.verify.bounds import region_input
from lirpa_lip.verify.branching import decide
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.network import Network
from lirpa_lip.verify.properties import Case, Margins


@dataclass(frozen=True)
class Branched:
    """What one search came to.

    Attributes:
        rows: indices of the rows that it was about.
        lower: their bounds, valid whenever it stopped.
        worth: of them.
        counterexample, output: a violation as the network itself has it, or None.
    """

    rows: Tensor
    lower: Tensor
    worth: Certificate
    counterexample: Tensor | None = None
    output: Tensor | None = None


def searches(margins: Margins) -> int:
    """How many calls `branch` makes at most, among which δ is divided."""
    count = torch.bincount(margins.case)
    return int((count == 1).any()) + int(count[count > 1].sum())


def branch(
    network: Network,
    cases: Sequence[Case],
    margins: Margins,
    is_open: Tensor,
    order: Tensor,
    *,
    config: LocalLipConfig,
    deadline: float,
) -> Iterator[Branched]:
    """Searches until the deadline, its time in equal parts for those that are left.

    Args:
        is_open: ``(cases,)``.
        order: ``(rows,)``; of a case with several rows the one with the largest number is tried first.
        config: settings of one search.
        deadline: `time.monotonic` at which searches stop.
    """
    alone = torch.bincount(margins.case)[margins.case] == 1
    wanted = is_open[margins.case]
    parts = [(alone & wanted).nonzero().squeeze(1)] if bool((alone & wanted).any()) else []
    left = (~alone & wanted).nonzero().squeeze(1)
    parts += [row.reshape(1) for row in left[order[left].argsort(descending=True)]]
    excluded = torch.zeros_like(is_open)
    for place, rows in enumerate(parts):
        now = time.monotonic()
        if now >= deadline:
            return
        if bool(excluded[margins.case[rows]].all()):
            continue
        limit = (deadline - now) / (len(parts) - place)
        region = cases[0].region
        bounded = network.bounded(config)
        found = decide(bounded, region_input(region), margins.c[rows], margins.d[rows], time_limit=limit)
        excluded[margins.case[rows[found.lower > 0]]] = True
        seen = _checked(network, cases, region, found.counterexample)
        yield Branched(rows, found.lower, found.certificate, *seen)


def _checked(
    network: Network, cases: Sequence[Case], region: InputRegion, x: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """A point that the search met, moved into the region in the network's precision, if the network itself agrees."""
    if x is None:
        return None, None
    point = region.project(x.to(network.dtype))
    output = network.original(point)
    if any(case.violated(point, output.tolist()) for case in cases):
        return point, output
    return None, None
