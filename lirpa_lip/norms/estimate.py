"""Estimates of norms from below, by Lanczos, and what bounds are built on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lirpa_lip.errors import NonFiniteError
from lirpa_lip.norms.draw import Source
from lirpa_lip.norms.lanczos import Recurrence, Replay, random_start, run, start_or_random
from lirpa_lip.norms.problem import Problem
from lirpa_lip.norms.reduce import by_reduction, reduction_pays
from lirpa_lip.norms.result import NormResult, Want, combined
from lirpa_lip.results import ESTIMATE

#: Other forms of a map, a stencil or reduced matrices, take at least as long to find as this many applications of it.
WORTHWHILE_STEPS = 4

#: Norms in float32 below this are found again in float64: their squares come near what float32 holds.
LEAST_SINGLE = 2.0**-40


def ritz_error(state: Recurrence, values: Tensor, top_vector: Tensor) -> Tensor:
    """Estimated relative error of the top Ritz value theta, ``(b,)``: the larger of two, both over theta.

    An eigenvalue lies within the residual r of theta, and within r²/gap if the rest of the spectrum is a gap away
    (Parlett, *The Symmetric Eigenvalue Problem*, 11.7); the gap is taken to the next Ritz value, which may not have
    converged. So the rise since the last check must have died out, too.
    """
    tiny = torch.finfo(values.dtype).tiny
    top = values[:, -1].clamp(min=tiny)
    residual = state.beta[:, -1] * top_vector[:, -1].abs()
    gap = values[:, -1] - values[:, -2] if values.shape[1] > 1 else torch.zeros_like(top)
    ahead = residual * (residual / gap.clamp(min=tiny)).clamp(max=1)
    return torch.maximum(ahead, values[:, -1] - state.last_top) / top


def estimate(
    problem: Problem,
    start: Tensor | None,
    rtol: float,
    max_steps: int,
    source: Source,
    *,
    want: Want,
) -> NormResult:
    """An estimate from below of each norm, stopped where the error of sigma is estimated at ``rtol`` or less.

    Args:
        start: ``(B, numel)`` or ``None`` for a random one; samples whose start is 0 get a random one too.
        want: vectors later are those of a start by a seed; of any other they are found now.
    """
    form: Callable[[Problem], Problem] = _as_it_is
    if max_steps >= WORTHWHILE_STEPS:
        if start is None and reduction_pays(problem):
            options = (rtol, max_steps, source)
            return by_reduction(problem, lambda part, want: estimate(part, None, *options, want=want), want)
        form = Problem.with_stencil
    replay = Replay(problem, form, source) if want is Want.LATER and isinstance(source, int) else None
    problem = form(problem)
    keep = want is not Want.NOTHING
    begin = random_start(problem, source) if start is None else start_or_random(problem, start, source)

    def done(state: Recurrence, values: Tensor, vector: Tensor) -> Tensor:
        # sigma is the root of the Ritz value, so its relative error is half.
        return ritz_error(state, values, vector) <= 2 * rtol

    sigma, top, steps = begin.new_zeros(problem.size), torch.zeros_like(begin) if keep and replay is None else None, 0
    groups = run(problem, begin, done, max_steps, keep)
    del begin
    for state, values, vector in groups:
        sigma[state.index] = values[:, -1].clamp(min=0).sqrt().to(sigma.dtype)
        steps = max(steps, state.steps)
        if top is not None:
            top[state.index] = state.combine(vector)
        if replay is not None:
            replay.note(state, vector)
        del state  # with its vectors, which may be as many as are still to come
    left = right = None
    if top is not None:
        left, right, sigma = problem.singular_pair(top)
    return NormResult(sigma, sigma, ESTIMATE, steps, left, right, recall=replay)


def _as_it_is(problem: Problem) -> Problem:
    return problem


def estimate_for_bound(problem: Problem, rtol: float, max_steps: int, source: Source, want: Want) -> NormResult:
    """An estimate to build a deterministic bound on: in float64 where squares leave the range of the map's dtype."""
    if problem.map.dtype == torch.float64:
        return estimate(problem, None, rtol, max_steps, source, want=want)
    double = problem.to(torch.float64)
    try:
        found = estimate(problem, None, rtol, max_steps, source, want=want).to(torch.float64)
    except NonFiniteError:
        return estimate(double, None, rtol, max_steps, source, want=want)
    rest = (found.lower > LEAST_SINGLE).nonzero().squeeze(1)
    weak = (~(found.lower > LEAST_SINGLE)).nonzero().squeeze(1)
    if not len(weak):
        return found
    again = estimate(double.select(weak), None, rtol, max_steps, source, want=want)
    return combined([found.select(rest), again], [rest, weak], problem.size)


def below(estimated: NormResult, problem: Problem) -> Tensor:
    """What the norms reach, whatever was rounded in the estimate of them, ``(B,)``, float64.

    Of random roundings a sum of n terms errs by about sqrt(n) units; those of the longest sum count four times.
    """
    terms = max(problem.map.in_numel, problem.map.out_numel)
    margin = (64 + 4 * terms**0.5) * torch.finfo(problem.map.dtype).eps
    return estimated.lower.double() * (1 - margin)
