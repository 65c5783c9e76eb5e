"""Norms near one: factors of powers of two taken out, so that nothing underflows or overflows unseen.

Solvers square a norm, some of them twice, and a composition passes through the products of its first factors. So where
values are far from one, or a norm turns out to be, the problem is solved again in float64 with the power of two taken
out of each factor and of each sample's masks (`LinearMap.balanced`), and by how large the image of a vector is. Entries
of all factors are then below one, and those of the masks below 2^300. So with w ways from the inputs to an output
(`LinearMap.support`), an application loses at most about ``w 2^(600 - 1022)`` to underflow, which is nothing beside a
norm in the range. What a solver says of a norm below the range is worth nothing but that: the norm is not in the range,
or the solver would have said so. The bound is then twice the range's lower end. It is 0 only where there is no way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lirpa_lip.errors import NonFiniteError
from lirpa_lip.norms.draw import normal
from lirpa_lip.norms.linear_map import LinearMap, MaskedMap
from lirpa_lip.norms.powers import exponents, times_power
from lirpa_lip.norms.problem import Problem
from lirpa_lip.norms.reduce import Reduced, active_counts, fitted_matrix
from lirpa_lip.norms.result import NormResult, combined, place

#: Exponents of all factors together up to which a problem is solved as it is given, in float64 and in less.
GIVEN, GIVEN_NARROW = 200, 40

#: Norms, in the units of a solve, whose squares and their squares are far inside the range of the precision.
RANGE, RANGE_NARROW = (2.0**-210, 2.0**220), (2.0**-50, 2.0**60)

#: Ways through the map up to which underflow takes nothing that counts from a norm in the range.
MOST_WAYS = 2.0**150

#: Largest exponent that is shared out between a sample's masks, and the least that is worth it.
MOST_SHARED, LEAST_SHARED = 600, 60

Run = Callable[[Problem], NormResult]


def solve_in_range(
    masked: LinearMap, problem: Problem, run: Run, given: int | None = None
) -> tuple[NormResult, Tensor | None]:
    """Solves a problem as it is, or balanced: as a whole, or those samples whose norms turn out to be out of range.

    Args:
        masked: the map with its masks.
        problem: the same.
        given: limit on the exponents of what is solved as it is; ``None`` for that of the dtype.

    Returns:
        results in units of their own, and k, ``(B,)``, where a value v of them stands for ``v 2^k``; ``None`` for 0.
    """
    if given is None:
        given = GIVEN if problem.map.dtype == torch.float64 else GIVEN_NARROW
    if _total(problem.magnitudes) > given:
        return _balanced(masked, problem, run)
    try:
        result = run(problem)
    except NonFiniteError:
        return _balanced(masked, problem, run)
    odd = _out_of_range(problem, result).nonzero().squeeze(1)
    if not len(odd):
        return result, None
    if len(odd) == problem.size:
        return _balanced(masked, problem, run)
    part, exponent = _balanced(masked.select(odd), problem.select(odd), run)
    rest = torch.ones(problem.size, dtype=torch.bool, device=odd.device)
    rest[odd] = False
    others = rest.nonzero().squeeze(1)
    whole = combined([part, result.to(torch.float64).select(others)], [odd, others], problem.size)
    return whole, place(problem.size, [exponent], [odd])


def _total(magnitudes: tuple[int, ...]) -> int:
    """Largest product of some of the factors, as an exponent of either sign."""
    return max(sum(e for e in magnitudes if e > 0), -sum(e for e in magnitudes if e < 0))


def _out_of_range(problem: Problem, result: NormResult) -> Tensor:
    """Samples that have something left, and a norm out of range; ``(B,)``."""
    least, largest = RANGE if result.upper.dtype == torch.float64 else RANGE_NARROW
    inside = (result.upper >= least) & (result.upper <= largest)
    if bool(inside.all()):
        return ~inside
    rows, columns = active_counts(problem)
    return ~inside & (rows * columns > 0).to(inside.device)


def balanced_map(masked: LinearMap, size: int) -> tuple[LinearMap, Tensor]:
    """``A'`` and k with ``A_b = 2^k_b A'_b``, in float64, with the graph of A."""
    double = masked.to(torch.float64)
    core, mask_in, mask_out = double, None, None
    if isinstance(double, MaskedMap):
        core, mask_in, mask_out = double.map, double.mask_in, double.mask_out
    core, found = core.balanced()
    total = found.expand(size)
    mask_in, below = _balanced_mask(mask_in, size)
    mask_out, above = _balanced_mask(mask_out, size)
    reached = _reached(core.detach(), size, mask_in, mask_out).clamp(-MOST_SHARED, MOST_SHARED)
    total = total + below + above
    if bool((reached.abs() >= LEAST_SHARED).any()):
        half = reached.div(2, rounding_mode="floor")
        mask_in = _shared(mask_in, -half, core.in_shape)
        mask_out = _shared(mask_out, half - reached, core.out_shape)
        total = total + reached
    return (core if mask_in is None and mask_out is None else MaskedMap(core, mask_in, mask_out)), total


def _balanced_mask(mask: Tensor | None, size: int) -> tuple[Tensor | None, Tensor | int]:
    if mask is None:
        return None, 0
    e = exponents(mask.detach().abs().flatten(1).amax(1))
    return times_power(mask, -e), e


def _shared(mask: Tensor | None, exponent: Tensor, shape: torch.Size) -> Tensor:
    if mask is None:
        mask = torch.ones(len(exponent), *[1] * len(shape), dtype=torch.float64, device=exponent.device)
    return times_power(mask, exponent).expand(len(exponent), *shape)


@torch.no_grad()
def _reached(core: LinearMap, size: int, mask_in: Tensor | None, mask_out: Tensor | None) -> Tensor:
    """Exponents of the image of a random vector of size one, ``(B,)``; 0 where it is 0 or not finite."""
    vector = normal(core.in_shape, torch.float64, core.device, 0)
    vector = (vector / vector.abs().amax()).expand(size, *core.in_shape)
    image = core.forward(vector if mask_in is None else vector * mask_in)
    image = image if mask_out is None else image * mask_out
    largest = image.abs().flatten(1).amax(1)
    return exponents(torch.where(torch.isfinite(largest), largest, 0))


@torch.no_grad()
def _balanced(masked: LinearMap, problem: Problem, run: Run) -> tuple[NormResult, Tensor]:
    carrier, exponent = balanced_map(masked, problem.size)
    core, mask_in, mask_out = carrier, None, None
    if isinstance(carrier, MaskedMap):
        core, mask_in, mask_out = carrier.map, carrier.mask_in, carrier.mask_out
    balanced = Problem(core.detach(), problem.size, mask_in, mask_out)
    result = run(balanced)
    odd = _out_of_range(balanced, result).nonzero().squeeze(1)
    if len(odd):
        return _one_by_one(problem, result, exponent, odd, run)
    return result, exponent


def _one_by_one(
    problem: Problem, result: NormResult, exponent: Tensor, odd: Tensor, run: Run
) -> tuple[NormResult, Tensor]:
    """Samples whose entries span more than float64's range, or that are 0: by their matrix, or with a margin."""
    ways = _ways(problem.select(odd).to(torch.float64)).tolist()  # of what is given: balanced, entries may be lost
    lower, upper, exponent = result.lower.clone(), result.upper.clone(), exponent.clone()
    fits: list[tuple[int, Reduced, NormResult]] = []
    for sample, way in zip(odd.tolist(), ways, strict=True):
        index = torch.tensor([sample], device=odd.device)
        fitted = None if way == 0 else fitted_matrix(problem.select(index).to(torch.float64))
        if way == 0:
            lower[sample] = upper[sample] = 0
        elif fitted is not None:
            group, exponent[sample] = fitted
            found = run(group.problem)
            lower[sample], upper[sample] = found.lower[0], found.upper[0]
            fits.append((sample, group, found))
        elif result.certified and bool(upper[sample] < RANGE[0]):
            lower[sample] = 0
            upper[sample] = 2 * RANGE[0] if way <= MOST_WAYS else torch.inf

    def with_fits(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left, right = left.clone(), right.clone()
        for sample, group, found in fits:
            row, column = found.vectors()
            left[sample] = group.expand(row, group.rows, problem.map.out_shape)
            right[sample] = group.expand(column, group.columns, problem.map.in_shape)
        return left, right

    whole = replace(result, lower=lower, upper=upper)
    if not all(found.has_vectors for _, _, found in fits):  # not wanted; those of diagonal maps are there all the same
        return replace(whole, left=None, right=None, recall=None), exponent
    return whole.with_vectors(with_fits), exponent


def _ways(problem: Problem) -> Tensor:
    """Largest number of ways from the inputs to an output, ``(B,)``; 0 for none, 1 where the map does not know."""
    options = {"dtype": torch.float64, "device": problem.map.device}
    support = problem.map.support()
    if support is None:
        return torch.ones(problem.size, **options)
    vector = torch.ones(problem.size, *problem.map.in_shape, **options)
    image = support.forward(vector if problem.mask_in is None else (problem.mask_in != 0).double())
    image = image if problem.mask_out is None else image * (problem.mask_out != 0)
    return image.flatten(1).amax(1).clamp(min=0)
