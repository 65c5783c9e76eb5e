"""Which domains hold no point: splits as linear constraints on the input, and proofs that they contradict each other.

A split ``z_i ≥ t`` and a plane ``z_i ≤ a·x + b`` give ``a·x + b − t ≥ 0`` for every point of the domain. Multipliers
λ ≥ 0 with ``max over the region of λᵀ(A x + b) < 0`` prove that there is none (Farkas); where λ comes from does not
matter, so a linear programme's or a least-squares solver's tolerance cannot make a proof false.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from lirpa_lip.jacobian.forward import Forward, pull_back_planes
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region

#: Inputs up to which contradictions between several constraints are looked for.
LP_INPUTS = 128

Split = tuple[str, int, float, float]


@torch.no_grad()
def split_constraints(
    graph: NetworkGraph, inputs: Region, forward: Forward, splits: Sequence[Sequence[Split]]
) -> tuple[Tensor, Tensor]:
    """``A x + b ≥ 0`` for every point of each domain: ``(batch, m, n)`` and ``(batch, m)``, padded by ``0 ≥ 0``.

    Args:
        splits: per domain ``(node, flat index, after, before)``.
    """
    rows, offsets = [], []
    for name in sorted({s[0] for own in splits for s in own}):
        listed = [_signed(own, name) for own in splits]
        most = max(len(one) for one in listed)
        shape = graph[name].shape
        selected = torch.zeros(len(splits), most, shape.numel(), dtype=graph.dtype, device=graph.device)
        bound = torch.zeros(len(splits), most, dtype=graph.dtype, device=graph.device)
        for k, one in enumerate(listed):
            for j, (index, sign, value) in enumerate(one):
                selected[k, j, index], bound[k, j] = sign, value
        chosen = selected.reshape(len(splits), most, *shape)
        a, b = pull_back_planes(graph, {name: chosen}, (forward.lines, forward.slack))
        rows.append(a.flatten(2))
        offsets.append(b - bound + 4 * torch.finfo(b.dtype).eps * (b.abs() + bound.abs()))
    if not rows:
        n = graph[graph.input].shape.numel()
        empty = torch.zeros(len(splits), 0, dtype=graph.dtype, device=graph.device)
        return empty.unsqueeze(2).expand(-1, -1, n), empty
    return torch.cat(rows, 1), torch.cat(offsets, 1)


def _signed(own: Sequence[Split], name: str) -> list[tuple[int, float, float]]:
    """Splits of one node as ``sign · z_index ≥ value``."""
    found = []
    for node, index, after, before in own:
        if node != name:
            continue
        if after > -np.inf:
            found.append((index, 1.0, after))
        if before < np.inf:
            found.append((index, -1.0, -before))
    return found


def shrink(inputs: Region, a: Tensor, b: Tensor, rounds: int = 2) -> Region:
    """The box cut by each constraint in turn, coordinate by coordinate, the others at their best: may come out
    empty."""
    if a.shape[1] == 0:
        return inputs
    low, high = (t.flatten(1) for t in inputs.interval())
    eps = torch.finfo(a.dtype).eps
    usable = a.abs() > 1e-9 * a.abs().amax(-1, keepdim=True)
    divisor = torch.where(usable, a, 1.0)
    for _ in range(rounds):
        reach = torch.maximum(a * low.unsqueeze(1), a * high.unsqueeze(1))
        size = (a.abs() * torch.maximum(low.abs(), high.abs()).unsqueeze(1)).sum(-1) + b.abs()
        room = 8 * (a.shape[-1] + 8) * eps * size
        needed = -(b.unsqueeze(-1) + reach.sum(-1, keepdim=True) - reach + room.unsqueeze(-1))
        ends = needed / divisor
        ends = ends - 8 * eps * ends.abs() * divisor.sign()
        new_low = torch.where(usable & (a > 0), ends, -torch.inf).amax(1)
        new_high = torch.where(usable & (a < 0), ends, torch.inf).amin(1)
        low, high = torch.maximum(low, new_low), torch.minimum(high, new_high)
    return inputs.within(low.reshape(inputs.centre.shape), high.reshape(inputs.centre.shape))


def contradiction(inputs: Region, a: Tensor, b: Tensor) -> tuple[bool, Tensor | None]:
    """For one domain: whether its constraints provably exclude each other, and a point well inside them if one is
    known.

    Args:
        inputs: a region of one sample.
        a, b: ``(m, n)`` and ``(m,)``.
    """
    used = a.abs().sum(1) > 0
    a, b = a[used], b[used]
    if len(a) == 0:
        return False, None
    scale = a.abs().sum(1)
    a, b = a / scale.unsqueeze(1), b / scale
    solver = _by_programme if inputs.radius is None else _by_least_squares
    multipliers, point = solver(inputs, a.cpu().numpy(), b.cpu().numpy())
    if multipliers is not None and multipliers.max(initial=0.0) > 0:
        weight = torch.as_tensor(multipliers, dtype=a.dtype, device=a.device).clamp(min=0)
        weight = weight / weight.max()
        row, offset = weight @ a, weight @ b
        low, high = inputs.interval()
        room = (
            1e-13
            * (len(a) + 8)
            * ((weight @ b.abs()) + (weight @ a.abs()) @ torch.maximum(low.abs(), high.abs()).flatten())
        )
        best = inputs.maximum(row.reshape(1, 1, *inputs.shape)).squeeze() + offset + room
        if bool(best < 0):
            return True, None
    if point is None:
        return False, None
    return False, torch.as_tensor(point, dtype=a.dtype, device=a.device).reshape(1, *inputs.shape)


def _by_programme(inputs: Region, a: np.ndarray, b: np.ndarray):
    """``max t`` subject to ``A x + b ≥ t`` over the box: negative means a contradiction, with the dual as its proof."""
    low, high = (t.flatten().cpu().numpy() for t in inputs.interval())
    n = len(low)
    bounds = [*zip(low, high), (None, 1.0)]
    answer = linprog(np.r_[np.zeros(n), -1.0], A_ub=np.c_[-a, np.ones(len(a))], b_ub=b, bounds=bounds, method="highs")
    if answer.status != 0:
        return None, None
    return -answer.ineqlin.marginals, answer.x[:n]


def _by_least_squares(inputs: Region, a: np.ndarray, b: np.ndarray):
    """The point of the polyhedron nearest the centre, by non-negative least squares (Lawson and Hanson's LDP).

    The nearest point lies on the border, where kinks are; so the point given is the nearest with some margin.
    """
    radius = math.inf if inputs.radius is None else float(inputs.radius)
    multipliers, point = _nearest(inputs, a, b)
    for share in (1e-2, 1e-4, 1e-6):
        inner = _nearest(inputs, a, b - share * radius)[1]
        if inner is not None and np.linalg.norm(inner - inputs.centre.flatten().cpu().numpy()) <= radius:
            return multipliers, inner
    return multipliers, point


def _nearest(inputs: Region, a: np.ndarray, b: np.ndarray):
    centre = inputs.centre.flatten().cpu().numpy()
    system = np.vstack([a.T, -(a @ centre + b)[None]])
    target = np.zeros(len(centre) + 1)
    target[-1] = 1.0
    try:
        multipliers, _ = nnls(system, target)
    except RuntimeError:
        return None, None
    rest = system @ multipliers - target
    if abs(rest[-1]) < 1e-12:
        return multipliers, None
    return multipliers, centre - rest[:-1] / rest[-1]
