"""Deterministic bounds that cost a few applications of the map, whatever its size, and are loose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.norms.cholesky import UNIT
from lirpa_lip.norms.draw import Source
from lirpa_lip.norms.estimate import below, estimate_for_bound
from lirpa_lip.norms.gram import convolution_bound, gram_bound
from lirpa_lip.norms.linear_map import ConvMap
from lirpa_lip.norms.problem import Problem
from lirpa_lip.norms.reduce import reduced_groups
from lirpa_lip.norms.result import NormResult, Want
from lirpa_lip.norms.schur import schur_bound
from lirpa_lip.results import DETERMINISTIC


def loose_bounds(problem: Problem) -> Tensor:
    """The smaller of the unmasked convolution's bound and Schur's test, ``(B,)``; infinite where neither exists."""
    bound = torch.full((problem.size,), torch.inf, dtype=torch.float64, device=problem.map.device)
    if isinstance(problem.map, ConvMap):
        bound = unmasked_bounds(problem)
    try:
        return torch.minimum(bound, schur_bound(problem))
    except NotImplementedError:
        return bound


def unmasked_bounds(problem: Problem) -> Tensor:
    """The norm of the convolution without its masks, times the largest scale on either side; ``(B,)``."""
    assert isinstance(problem.map, ConvMap)
    bound = convolution_bound(problem.map).expand(problem.size)
    for mask in (problem.mask_in, problem.mask_out):
        bound = bound if mask is None else bound * mask.abs().flatten(1).amax(1).double() * (1 + 2 * UNIT)
    return bound


def gram_bounds(problem: Problem) -> Tensor:
    """Gram iteration: of the reduced matrices, or of a convolution without its masks; ``(B,)``."""
    if isinstance(problem.map, ConvMap):
        return unmasked_bounds(problem)
    if not problem.map.cheap_entries:
        raise ConfigError(f"Gram iteration needs the entries of the map, which a {type(problem.map).__name__} has not.")
    upper = torch.zeros(problem.size, dtype=torch.float64, device=problem.map.device)
    for group in reduced_groups(problem.to(torch.float64)):
        upper[group.index] = gram_bound(group.problem.map.dense())
    return upper


def loose_result(
    problem: Problem,
    bounds: Callable[[Problem], Tensor],
    rtol: float,
    max_steps: int,
    source: Source,
    *,
    want: Want,
) -> NormResult:
    """Bounds from above by the function given, and a Lanczos estimate from below.

    Raises:
        ConfigError: the map gives no entries.
    """
    guess = estimate_for_bound(problem, rtol, max_steps, source, want)
    try:
        upper = bounds(problem)
    except NotImplementedError as error:
        raise ConfigError(f"{error} Ask for certificate='probabilistic', which needs no entries.") from error
    lower = torch.minimum(below(guess, problem), upper)
    return replace(guess, lower=lower, upper=upper, worth=DETERMINISTIC)
