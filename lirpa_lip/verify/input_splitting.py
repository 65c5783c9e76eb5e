"""Branch and bound over the input, for boxes of few dimensions: cut in halves, each half bounded by CROWN.

What splits of neurons cannot do is done here too: a case of several rows, of which another one excludes it in every
part of the region. Parts are closed boxes that share their borders, so that together they are the region.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.verify.bounds import crown_on_boxes
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.network import Network
from lirpa_lip.verify.properties import Case, Margins

#: Most dimensions of a box that is cut.
DIMENSIONS = 10
#: Boxes that are bounded at once, and that may wait.
_BATCH, _WAITING = 128, 200_000


@dataclass(frozen=True)
class Split:
    """What is known when the search ends.

    Attributes:
        lower: ``(cases,)`` float64, bounds of each case's margin over the region, valid whenever the search stopped.
        boxes: that were bounded.
        counterexample, output: a violation as the network itself has it, or None.
    """

    lower: Tensor
    boxes: int
    counterexample: Tensor | None = None
    output: Tensor | None = None


def free_dimensions(region: InputRegion) -> int:
    """In how many coordinates a region extends."""
    return int((region.high > region.low).sum())


def split_inputs(network: Network, cases: tuple[Case, ...], margins: Margins, deadline: float) -> Split:
    """Cuts the cases' box until each case is excluded in every part, one is violated, or the time is used up.

    Args:
        cases: of one region, a box.
        deadline: `time.monotonic` at which no further batch is begun.
    """
    region = cases[0].region
    known = torch.full((len(cases),), torch.inf, dtype=torch.float64)  # least bound of the parts that are closed
    waiting: list[tuple[float, int, Tensor, Tensor, Tensor]] = []
    count, order = 0, itertools.count()
    batch = region.low, region.high
    start = torch.full((len(cases),), -torch.inf, dtype=torch.float64)
    bounded = start.unsqueeze(0)
    while True:
        count += len(batch[0])
        rows = crown_on_boxes(network, *batch, margins.c, margins.d)
        found = torch.maximum(margins.per_case(rows), bounded)  # a part is no worse than what it was cut from
        point, output = _violation(network, cases, margins, batch)
        if point is not None:
            return Split(start, count, point, output)
        is_open = ~(found > 0).all(1)
        known = torch.minimum(known, _closed(found, is_open))
        for place in is_open.nonzero().squeeze(1).tolist():
            own = found[place]
            heapq.heappush(waiting, (float(own.min()), next(order), batch[0][place], batch[1][place], own))
        if not waiting or time.monotonic() >= deadline or len(waiting) > _WAITING:
            return Split(_least(known, waiting), count)
        taken = [heapq.heappop(waiting) for _ in range(min(_BATCH // 2, len(waiting)))]
        batch, parents = _halves(network, taken, margins)
        bounded = torch.stack([taken[k][4] for k in parents])


def _closed(found: Tensor, is_open: Tensor) -> Tensor:
    done = found[~is_open]
    return done.amin(0) if len(done) else torch.full_like(found[0], torch.inf)


def _least(known: Tensor, waiting: list[tuple[float, int, Tensor, Tensor, Tensor]]) -> Tensor:
    """Over all parts: those that are closed, and those that wait."""
    return torch.stack([known, *(entry[4] for entry in waiting)]).amin(0)


def _halves(
    network: Network, taken: list[tuple[float, int, Tensor, Tensor, Tensor]], margins: Margins
) -> tuple[tuple[Tensor, Tensor], list[int]]:
    """Each box in two, across the coordinate in which the margins of its open cases can change most."""
    low, high = (torch.stack([entry[k] for entry in taken]) for k in (2, 3))
    centre = (low / 2 + high / 2).to(network.dtype).requires_grad_()
    with torch.enable_grad():
        per_case = margins.per_case(network.values(centre).double() @ margins.c.T + margins.d)
        worst = torch.stack([entry[4] for entry in taken]).argmin(1, keepdim=True)
        slope = torch.autograd.grad(per_case.gather(1, worst).sum(), centre)[0].double().abs()
    width = high - low
    # where all is flat at the centre the widest coordinate is cut
    score = (width * (slope + 1e-3 * slope.flatten(1).amax(1).reshape(-1, *[1] * (width.ndim - 1)) + 1e-12)).flatten(1)
    parts_low, parts_high, parents = [], [], []
    for k in range(len(taken)):
        axis = int(score[k].argmax())
        flat_low, flat_high = low[k].flatten(), high[k].flatten()
        middle = flat_low[axis] / 2 + flat_high[axis] / 2
        for is_upper in (False, True):
            first, last = flat_low.clone(), flat_high.clone()
            (first if is_upper else last)[axis] = middle
            parts_low.append(first.reshape(low[k].shape))
            parts_high.append(last.reshape(low[k].shape))
            parents.append(k)
    return (torch.stack(parts_low), torch.stack(parts_high)), parents


def _violation(
    network: Network, cases: tuple[Case, ...], margins: Margins, batch: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """A violation at a centre of the boxes, as the network itself has it."""
    x = cases[0].region.project((batch[0] / 2 + batch[1] / 2).to(network.dtype))
    with torch.no_grad():
        seen = margins.per_case(network.values(x).double() @ margins.c.T + margins.d).amin(1)
    for place in (seen <= 0).nonzero().squeeze(1).tolist()[:4]:
        point = x[place : place + 1]
        output = network.original(point)
        if any(case.violated(point, output.tolist()) for case in cases):
            return point.clone(), output.clone()
    return None, None
