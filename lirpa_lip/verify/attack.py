"""Counterexamples: projected gradient descent on margins, and the network itself as the judge."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.network import Network
from lirpa_lip.verify.properties import Case, Margins

#: Most points that are tried at once.
_POINTS = 512
#: Points with the least margins that the network itself is asked about.
_ASKED = 4


@dataclass(frozen=True)
class Found:
    """What an attack came to.

    Attributes:
        least: the smallest margin seen at a point of the region, by the model in its own precision.
        counterexample, output: a violation as the network itself has it, or None.
    """

    least: float
    counterexample: Tensor | None = None
    output: Tensor | None = None


def attack(
    network: Network,
    cases: Sequence[Case],
    margins: Margins,
    steps: int,
    restarts: int,
    *,
    seed: int,
    deadline: float = math.inf,
) -> Found:
    """Looks for a point of a region, which all cases share, at which one of them is violated.

    Every case is descended on from the centre and from random points: signed or, for balls, normalised gradient steps
    whose size falls linearly.

    Args:
        margins: of the cases' rows, see `Margins`.
        steps: 0 looks at the starting points alone.
        restarts: random starts for each case, beside the centre.
        deadline: `time.monotonic` at which no further step is begun.
    """
    region = cases[0].region
    generator = torch.Generator().manual_seed(seed)
    best = Found(math.inf)
    pending = [(case, start) for start in range(restarts + 1) for case in range(len(cases))]
    size = max(1, min(_POINTS, len(pending)))
    for place in range(0, len(pending), size):
        chunk = pending[place : place + size]
        targets = torch.tensor([case for case, _ in chunk])
        x = region.sample(len(chunk), generator)
        first = torch.tensor([start == 0 for _, start in chunk])
        x[first] = region.centre
        best = _descend(network, cases, margins, region, x, targets, steps, best, deadline)
        if best.counterexample is not None or time.monotonic() >= deadline:
            break
    return best


def _descend(
    network: Network,
    cases: Sequence[Case],
    margins: Margins,
    region: InputRegion,
    x: Tensor,
    targets: Tensor,
    steps: int,
    best: Found,
    deadline: float,
) -> Found:
    wide = (region.inner_high - region.inner_low) / 2
    reach = region.reach if region.radius is not None else 1.0
    for step in range(steps + 1):
        x = x.detach().requires_grad_(step < steps)
        with torch.enable_grad():
            y = network.values(x).double()
            per_case = margins.per_case(y @ margins.c.T + margins.d)
            own = per_case.gather(1, targets.unsqueeze(1)).squeeze(1)
        best = _judged(network, cases, x.detach(), per_case.detach(), best)
        if best.counterexample is not None or step == steps or time.monotonic() >= deadline:
            break
        gradient = torch.autograd.grad(own.sum(), x)[0]
        rate = (1 - step / steps) * max(8 / steps, 0.16)
        if region.radius is not None:
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, *[1] * (x.ndim - 1))
            move = reach * rate * gradient / length
        else:
            move = wide * rate * gradient.sign()
        x = region.project(x.detach() - move)
    return best


def _judged(network: Network, cases: Sequence[Case], x: Tensor, per_case: Tensor, best: Found) -> Found:
    """The better of two findings; where the model says that a case is violated, the network itself is asked."""
    flat = per_case.amin(dim=1)
    least = float(torch.where(flat.isnan(), math.inf, flat).min())
    best = Found(min(best.least, least), best.counterexample, best.output)
    if least > 0:
        return best
    for index in flat.argsort()[:_ASKED].tolist():
        if not flat[index] <= 0:
            break
        point = x[index : index + 1]
        output = network.original(point)
        if any(case.violated(point, output.tolist()) for case in cases):
            return Found(best.least, point.clone(), output.clone())
    return best
