"""Deterministic upper bounds: the reduced matrix of each sample, its Gram matrix, and a proof of definiteness."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.norms.cholesky import UNIT, gram_margin, top_eigenvalue_bound
from lirpa_lip.norms.lanczos import estimate
from lirpa_lip.norms.linear_map import DenseMap, LinearMap
from lirpa_lip.norms.problem import Problem
from lirpa_lip.norms.reduce import BatchedDenseMap, Reduced, active_counts, reduced_groups
from lirpa_lip.norms.result import NormResult

#: Largest order of a Gram matrix that "auto" forms.
DENSE_LIMIT = 1024

#: Relative accuracy of the estimate which the factorisation starts from.
GUESS_RTOL = 2e-6


def reduced_order(problem: Problem) -> int:
    """Order of the largest Gram matrix after eliminated rows and columns are dropped."""
    rows, columns = active_counts(problem)
    return int(torch.minimum(rows, columns).max())


def with_entries(problem: Problem, limit: int) -> Problem:
    """The problem on a map whose entries can be read.

    Raises:
        ConfigError: the map gives no entries, and is too large to be written out.
    """
    linear_map: LinearMap = problem.map
    if linear_map.cheap_entries:
        return problem
    if min(linear_map.in_numel, linear_map.out_numel) > limit:
        raise ConfigError(
            f"no deterministic bound for a {type(linear_map).__name__} of shape {tuple(linear_map.in_shape)} -> "
            f"{tuple(linear_map.out_shape)}, whose entries are not at hand; ask for certificate='probabilistic', "
            f"or raise dense_limit above {limit}."
        )
    matrix = linear_map.dense()
    written = DenseMap(matrix) if linear_map.batch_size is None else BatchedDenseMap(matrix)
    masks = [None if mask is None else mask.flatten(1) for mask in (problem.mask_in, problem.mask_out)]
    return Problem(written, problem.size, *masks)


def deterministic(problem: Problem, limit: int, generator: torch.Generator | None, want_vectors: bool) -> NormResult:
    """Bounds whose only error is rounding, accounted for, and the 1e-5 by which the test point exceeds the estimate."""
    shapes = problem.map.out_shape, problem.map.in_shape
    problem = with_entries(problem.to(torch.float64), limit)
    device = problem.map.device
    lower, upper = torch.zeros(2, problem.size, dtype=torch.float64, device=device)
    left = torch.zeros(problem.size, problem.map.out_numel, dtype=torch.float64, device=device)
    right = torch.zeros(problem.size, problem.map.in_numel, dtype=torch.float64, device=device)
    steps = 0
    for group in reduced_groups(problem):
        guess = estimate(group.problem, None, GUESS_RTOL, 200, generator, want_vectors)
        steps = max(steps, guess.iterations)
        lower[group.index] = guess.lower * (1 - 1e-12)
        upper[group.index] = _dense_bound(group, guess.lower)
        if guess.left is not None and guess.right is not None:
            left[group.index] = group.expand(guess.left, True, problem.map.out_numel)
            right[group.index] = group.expand(guess.right, False, problem.map.in_numel)
    vectors = (left.reshape(-1, *shapes[0]), right.reshape(-1, *shapes[1])) if want_vectors else (None, None)
    return NormResult(lower, upper, "deterministic", 0.0, steps, *vectors)


def _dense_bound(group: Reduced, sigma: Tensor) -> Tensor:
    matrix = group.problem.map.dense()
    small = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
    # The masks were multiplied in: an entry carries up to two more roundings, which the slack of the margin covers.
    margin = gram_margin(small.shape[2], matrix.square().sum((1, 2)))
    bound = top_eigenvalue_bound(small @ small.mT, sigma.square()) + margin
    return bound.clamp(min=0).sqrt() * (1 + 4 * UNIT)
