"""Deterministic upper bounds: an estimate, and a proof that the norm is hardly larger.

The Gram matrix of what is not eliminated is written out in float64, and a Cholesky factorisation shows that no
eigenvalue exceeds the estimate by more than 1e-5. Dense maps reduce to small matrices; a convolution's Gram matrix is
block tridiagonal (`conv_gram`), so that its factorisation costs a few products of blocks, not the cube of its order.
Where even that is too much, the smaller of two loose bounds remains: the unmasked convolution's (`gram`) and Schur's
test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.norms.cholesky import (
    DISTANCES,
    UNIT,
    block_tridiagonal_definite,
    dense_top_eigenvalue,
    escalate,
    factor_margin,
    gram_margin,
)
from lirpa_lip.norms.conv_gram import Side, blocks, factor_work, side, stencil
from lirpa_lip.norms.draw import Source, another
from lirpa_lip.norms.estimate import below, estimate, estimate_for_bound
from lirpa_lip.norms.linear_map import ComposedMap, ConvMap, IdentityMap
from lirpa_lip.norms.loose import loose_bounds
from lirpa_lip.norms.problem import Problem, unit
from lirpa_lip.norms.reduce import GROUP_ELEMENTS, active_counts, by_rows, few_rows, reduced_groups, written_out
from lirpa_lip.norms.result import NormResult, Want, combined
from lirpa_lip.results import DETERMINISTIC

#: Relative accuracy of the estimate which the factorisation starts from, and its steps at most.
GUESS_RTOL, GUESS_STEPS = 1e-6, 150

#: Largest smaller side of a map without entries that is written out, by as many applications.
DENSE_LIMIT = 2048

#: Floating-point operations per sample which an exact bound may take where a deterministic one was asked for by name.
WORK_LIMIT = 2e12


def work(problem: Problem) -> dict[str, float]:
    """Floating-point operations per sample of each way to an exact bound, such as ``dense`` or ``outputs``."""
    linear_map = problem.map
    if isinstance(linear_map, IdentityMap):
        return {"diagonal": 0.0}
    if _is_isometry(problem):
        return {"isometry": 0.0}
    if not linear_map.cheap_entries:
        return {}
    rows, columns = active_counts(problem)
    small, large = torch.minimum(rows, columns).double(), torch.maximum(rows, columns).double()
    ways = {"dense": float((2 * small**2 * large + small**3 / 3).mean())}
    if isinstance(linear_map, ConvMap) and linear_map.axes <= 2:
        for name, outputs, count in (("outputs", True, rows), ("inputs", False, columns)):
            share = float(count.double().mean()) / (linear_map.out_numel if outputs else linear_map.in_numel)
            ways[name] = sum(factor_work(side(linear_map, group, outputs), share) for group in range(linear_map.groups))
        # Entries of a convolution are gathered one by one, at some twenty operations each.
        ways["dense"] += float((20 * small * large).mean())
    return ways


def deterministic(problem: Problem, source: Source, want: Want) -> NormResult:
    """Bounds of all samples.

    Raises:
        ConfigError: the map gives no entries and is too large to be written out.
    """
    if isinstance(problem.map, IdentityMap):
        return _diagonal(problem)
    if _is_isometry(problem):
        return _of_isometry(problem)
    if not problem.map.cheap_entries:
        return _of_written_out(problem, source, want)
    double = problem.to(torch.float64)
    guess = estimate_for_bound(problem, GUESS_RTOL, GUESS_STEPS, source, want)
    sigma, lower = guess.lower.double(), below(guess, problem)
    upper = exact_bounds(double, sigma, DISTANCES[:1])
    missed = torch.isinf(upper).nonzero().squeeze(1)
    if len(missed):
        part = double.select(missed)
        better = estimate(part, None, GUESS_RTOL / 100, 4 * GUESS_STEPS, another(source), want=Want.NOTHING)
        sigma[missed] = torch.maximum(sigma[missed], better.lower)
        lower[missed] = torch.maximum(lower[missed], below(better, part))
        upper[missed] = exact_bounds(part, sigma[missed], DISTANCES)
    failed = torch.isinf(upper).nonzero().squeeze(1)
    if len(failed):
        upper[failed] = loose_bounds(double.select(failed))
    lower = torch.minimum(lower, upper)
    return replace(guess, lower=lower, upper=upper, worth=DETERMINISTIC)


def exact_bounds(problem: Problem, sigma: Tensor, distances: Sequence[float]) -> Tensor:
    """The cheapest exact way of all samples, ``(B,)``; infinite where it is too much work, or no test point passed."""
    ways = work(problem)
    way = min(ways, key=ways.__getitem__)
    if ways[way] > WORK_LIMIT:
        return torch.full_like(sigma, torch.inf)
    if way == "dense":
        return dense_bounds(problem, sigma, distances)
    return convolution_bounds(problem, way == "outputs", sigma, distances)


def _of_written_out(problem: Problem, source: Source, want: Want) -> NormResult:
    linear_map, few = problem.map, few_rows(problem)
    if min(linear_map.in_numel, linear_map.out_numel) > DENSE_LIMIT and not few:
        raise ConfigError(
            f"no deterministic bound for a {type(linear_map).__name__} of shape {tuple(linear_map.in_shape)} -> "
            f"{tuple(linear_map.out_shape)}: its entries are not at hand, and it is too large to be written out; "
            "ask for certificate='probabilistic'."
        )
    problem = problem.to(torch.float64)
    if want is Want.LATER:
        # of the map as it is, so that nothing is kept of what was written out
        kept = problem.bare()
        bounds = _of_written_out(problem, source, Want.NOTHING)
        options = (GUESS_RTOL, GUESS_STEPS, source)
        return replace(bounds, recall=lambda: estimate(kept.bare(), None, *options, want=Want.NOW).vectors())
    if few:
        return by_rows(problem, lambda part, want: deterministic(part, source, want), want)
    if linear_map.batch_size is None:
        return deterministic(written_out(problem), source, want)
    together = max(1, GROUP_ELEMENTS // (linear_map.in_numel * linear_map.out_numel))
    parts = torch.arange(problem.size, device=linear_map.device).split(together)
    found = [deterministic(written_out(problem.select(part)), source, want) for part in parts]
    return combined(found, parts, problem.size)


def _is_isometry(problem: Problem) -> bool:
    return problem.map.coisometric and problem.mask_in is None


def _of_isometry(problem: Problem) -> NormResult:
    """The largest scale of a row, as the rows are orthogonal unit vectors: to the roundings of their entries."""
    shape = problem.map.out_shape
    scale = torch.ones(problem.size, shape.numel(), dtype=torch.float64, device=problem.map.device)
    scale = scale if problem.mask_out is None else problem.mask_out.flatten(1).double().abs()
    sigma, index = scale.max(1)
    left = torch.zeros_like(scale).scatter_(1, index.unsqueeze(1), 1.0).reshape(-1, *shape).to(problem.map.dtype)
    parts = len(problem.map.maps) if isinstance(problem.map, ComposedMap) else 1
    slack = 64 * parts * UNIT
    right = unit(problem.map.adjoint(left))
    return NormResult(sigma * (1 - slack), sigma * (1 + slack), DETERMINISTIC, 0, left, right)


def _diagonal(problem: Problem) -> NormResult:
    """The largest scale, exactly but for the roundings of the scales that were multiplied."""
    scale = torch.ones(problem.size, problem.numel, dtype=torch.float64, device=problem.map.device)
    for mask in (problem.mask_in, problem.mask_out):
        scale = scale if mask is None else scale * mask.flatten(1).double()
    sigma, index = scale.abs().max(1)
    right = torch.zeros_like(scale).scatter_(1, index.unsqueeze(1), (sigma > 0).double().unsqueeze(1))
    left = unit(right * scale)
    vectors = (v.reshape(-1, *problem.map.in_shape).to(problem.map.dtype) for v in (left, right))
    return NormResult(sigma * (1 - 32 * UNIT), sigma * (1 + 32 * UNIT), DETERMINISTIC, 0, *vectors)


def dense_bounds(problem: Problem, sigma: Tensor, distances: Sequence[float]) -> Tensor:
    """Upper bounds from reduced matrices; ``(B,)``.

    Args:
        problem: in float64.
        sigma: ``(B,)``, estimates.
        distances: relative distances of the squares tested above those of the estimates.
    """
    upper = torch.zeros_like(sigma)
    for group in reduced_groups(problem):
        matrix = group.problem.map.dense()
        small = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
        # The masks were multiplied in: two more roundings of each entry, which the margin's slack covers.
        margin = gram_margin(small.shape[2], matrix.square().sum((1, 2)))
        bound = dense_top_eigenvalue(small @ small.mT, sigma[group.index].square(), distances) + margin
        upper[group.index] = bound.sqrt() * (1 + 4 * UNIT)
    return upper


def convolution_bounds(
    problem: Problem, outputs: bool, sigma: Tensor, distances: Sequence[float] = DISTANCES
) -> Tensor:
    """Upper bounds from block tridiagonal Gram matrices, ``(B,)``; infinite where no test point was accepted.

    Args:
        problem: a convolution with one or two spatial axes, in float64.
        outputs: whether the Gram matrix lives on the outputs.
        sigma: ``(B,)``, estimates.
    """
    conv = problem.map
    assert isinstance(conv, ConvMap)
    here, there = (problem.mask_out, problem.mask_in) if outputs else (problem.mask_in, problem.mask_out)
    sides = [side(conv, group, outputs) for group in range(conv.groups)]
    upper = []
    for sample in range(problem.size):
        best = sigma.new_zeros(())
        for group, part in enumerate(sides):
            channels, others = part.weight.shape[:2]
            mask = None if here is None else here[sample].flatten(1)[group * channels : (group + 1) * channels]
            other = None if there is None else there[sample].flatten(1)[group * others : (group + 1) * others]
            values = stencil(part, None if other is None else other.square())
            bound = _block_bound(*blocks(part, values, mask), part, sigma[sample], distances)
            best = torch.maximum(best, bound)
        upper.append(best)
    return torch.stack(upper)


def _block_bound(
    diagonal: list[Tensor], coupling: list[Tensor], part: Side, sigma: Tensor, distances: Sequence[float]
) -> Tensor:
    order = sum(len(block) for block in diagonal)
    if order == 0:
        return sigma.new_zeros(())
    widest = max(len(block) for block in diagonal)
    trace = sum(block.diagonal().sum() for block in diagonal)

    def accepted(index: Tensor, t: Tensor) -> Tensor:
        return torch.tensor([block_tridiagonal_definite(diagonal, coupling, t[0])], device=t.device)

    bound = escalate(sigma.square().reshape(1), accepted, distances)[0] * (1 + factor_margin(2 * widest, order))
    terms = part.weight[0].numel()
    return (bound + gram_margin(2 * terms, trace)).sqrt() * (1 + 4 * UNIT)
