"""Upper bounds on the top eigenvalue of the Gram operator G from a Lanczos run with a random start.

Notation: G acts on R^n, its top eigenvalue is ``lam``, with unit eigenvector z; the start ``v_1`` is uniform on the
unit sphere; ``gamma = |z . v_1|``. Everything below holds *if* ``gamma >= gamma_min``.

**The chance of a small component** (`start_component`). For n >= 3 the density of one coordinate of a uniform unit
vector is largest at 0, where it is ``Gamma(n/2) / (sqrt(pi) Gamma((n-1)/2)) <= sqrt((n-1) / (2 pi))``: by
log-convexity ``Gamma(n/2)^2 <= Gamma((n-1)/2) Gamma((n+1)/2) = Gamma((n-1)/2)^2 (n-1)/2``. So ``P(gamma < c) <= 2 c
sqrt((n-1) / (2 pi)) <= c sqrt(2 n / pi)``, and ``gamma_min = delta sqrt(pi / (2 n))`` fails with probability at most
delta. For n = 2, ``P(gamma < c) = (2/pi) arcsin c <= c``; for n = 1, gamma = 1: the formula holds there too. A
repeated top eigenvalue does no harm: z is then any fixed unit vector of its eigenspace.

**A priori** (`a_priori_factor`; Kuczyński and Woźniakowski 1992, Thm 4.2, here with a short proof, for every k >= 1).
The top Ritz value xi after k steps is the largest Rayleigh quotient over ``q(G) v_1``, deg q < k, so for all such q
``sum_i gamma_i^2 q(lam_i)^2 (xi - lam_i) >= 0``. Take ``q(xi y^2) = U_{2k-2}(y)``, a Chebyshev polynomial of the
second kind, even in y. Where ``0 <= lam_i = xi y^2 <= xi``: ``q^2 (xi - lam_i) = xi (1 - y^2) U_{2k-2}(y)^2 = xi
sin^2((2k-1) arccos y) <= xi``; eigenvalues between xi and lam contribute nothing positive; and at ``lam = xi cosh^2
eta`` ``q^2 (lam - xi) = xi sinh^2((2k-1) eta)``. Hence ``gamma^2 sinh^2((2k-1) eta) <= 1 - gamma^2``, which is ``lam
<= xi cosh^2( arcsinh(sqrt(1 - gamma_min^2) / gamma_min) / (2k - 1) )``. It tells beforehand how many steps suffice.

**A posteriori** (`log_growth`, `polynomial_bound`; Hochstenbach 2013, sec. 3, here with its rounding). The computed
Lanczos vectors satisfy ``beta_j v_{j+1} = G v_j - alpha_j v_j - beta_{j-1} v_{j-1} + f_j``, |f_j| <= phi, with the
computed coefficients as they are: no orthogonality is used. With ``w_j = z . v_j`` and ``|w_j| <= |v_j| = 1``,
``beta_j w_{j+1} = (lam - alpha_j) w_j - beta_{j-1} w_{j-1} + z . f_j``. The polynomials p_j with ``p_0 = 1``,
``beta_j p_j = (t - alpha_j) p_{j-1} - beta_{j-1} p_{j-2}`` solve it at t = lam without the f_j. If lam exceeds every
Ritz value then all ``r_j = beta_j p_j(lam) / p_{j-1}(lam)`` are positive; put ``w_{j+1} = p_j omega_j``, ``d_j =
omega_j - omega_{j-1}``, and subtract: ``beta_j p_j p_{j-1} d_j = beta_{j-1} p_{j-1} p_{j-2} d_{j-1} + p_{j-1} z .
f_j``, so that ``|d_j| <= phi (p_0 + ... + p_{j-1}) / (beta_j p_j p_{j-1})``, and with ``S_k`` the sum of these over j
<= k, over phi,

    ``(gamma_min - phi S_k(lam)) p_k(lam) <= |w_{k+1}| <= 1``.

The left side increases with lam beyond the top Ritz value: the p_k rise, the S_k fall. So lam is at most the root t
of equality, for whichever k gives the least. Where lam does not exceed the top Ritz value, t is above it anyhow.
Float64 errors are taken as ``phi = ROUNDING t``, 8192 units of rounding for one application of G relative to its
norm; a sum of K terms errs by about sqrt(K) units and never by more than K. As ``gamma_min`` is 1e-10 and more, that
costs next to nothing. In float32 phi would exceed gamma_min: certificates never use it.

In exact arithmetic the second bound was below the first in every run measured (docs/norms.md), and only the second
has its rounding accounted for, so it alone is returned.

References:
    J. Kuczyński, H. Woźniakowski: Estimating the largest eigenvalue by the power and Lanczos algorithms with a random
    start. SIAM J. Matrix Anal. Appl. 13 (1992), 1094-1122.
    M. E. Hochstenbach: Probabilistic upper bounds for the matrix two-norm. J. Sci. Comput. 57 (2013), 464-476.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lirpa_lip.norms.draw import Source
from lirpa_lip.norms.lanczos import Recurrence, Replay, random_start, run
from lirpa_lip.norms.problem import Problem
from lirpa_lip.norms.reduce import by_reduction, reduction_pays
from lirpa_lip.norms.result import NormResult, Want
from lirpa_lip.results import Certificate

#: Bound on the error of one float64 step of the recurrence, relative to the norm of G.
ROUNDING = 2.0**-40

#: What the logarithm must exceed: 0, and a little as the vectors are unit but for rounding, as is the logarithm.
TARGET = 1e-9

#: Relative widths t / ritz - 1 at which the search for the root begins: it ends within a hundredth of the width.
_WIDTHS = torch.logspace(-12, 16, 57, dtype=torch.float64)


def start_component(delta: float, dimension: Tensor) -> Tensor:
    """``gamma_min``: the least start component along the top eigenvector, but for probability delta; ``(B,)``.

    Args:
        dimension: ``(B,)``, dimension n of the space from which the start is drawn.
    """
    gamma = delta * (math.pi / 2 / dimension.clamp(min=1).double()).sqrt().clamp(max=1)
    return torch.where(dimension > 1, gamma, 1.0)


def a_priori_factor(gamma: Tensor, steps: int) -> Tensor:
    """``lam / xi`` at most, after ``steps`` exact Lanczos steps; ``(B,)``."""
    reach = torch.asinh((1 - gamma * gamma).clamp(min=0).sqrt() / gamma)
    return torch.cosh(reach / (2 * steps - 1)).square()


def log_growth(alpha: Tensor, beta: Tensor, t: Tensor, gamma: Tensor, rounding: float = ROUNDING) -> Tensor:
    """``max_j log( (gamma - phi S_j(t)) p_j(t) )`` with ``phi = rounding * t``; minus infinity below a Ritz value.

    Args:
        alpha, beta: ``(B, k)``.
        t: ``(B, M)``, points at which to evaluate.
        gamma: ``(B,)``, gamma_min.
    """
    a, b, at, least = (value.cpu().numpy() for value in (alpha, beta, t, gamma))
    with np.errstate(all="ignore"):  # of points below a Ritz value anything may come, and nothing is used
        found = _log_growth(a, b, at, least, rounding)
    return torch.from_numpy(found).to(t.device)


def _log_growth(alpha: np.ndarray, beta: np.ndarray, t: np.ndarray, gamma: np.ndarray, rounding: float) -> np.ndarray:
    """In NumPy: hundreds of operations on a few numbers each, which take it a third of the time."""
    tiny = 1e-300
    log_p = np.zeros_like(t)
    best = np.full_like(t, -np.inf)
    spread = np.zeros_like(t)  # (p_0 + ... + p_{j-1}) / p_{j-1}
    noise = np.zeros_like(t)  # S_j
    above = np.ones_like(t, dtype=bool)
    ratio = np.ones_like(t)
    growth = np.ones_like(t)  # p_{j-1} / p_{j-2}
    start, unit = gamma[:, None], rounding * t
    for j in range(alpha.shape[1]):
        below = 0 if j == 0 else beta[:, j - 1 : j] ** 2 / ratio
        ratio = (t - alpha[:, j : j + 1]) - below
        above &= ratio > 0
        ratio = np.maximum(ratio, tiny)
        spread = 1 + spread / growth
        noise = noise + spread / ratio * np.exp(-log_p)
        growth = ratio / np.maximum(beta[:, j : j + 1], tiny)
        log_p = log_p + np.log(growth)
        component = start - unit * noise
        value = np.log(np.maximum(component, tiny)) + log_p
        best = np.where(above & (component > 0) & (value > best), value, best)
    return np.where(above, best, -np.inf)


def polynomial_bound(alpha: Tensor, beta: Tensor, ritz: Tensor, gamma: Tensor, enough: float = math.inf) -> Tensor:
    """Upper bound on lam, ``(B,)``: the root of the a-posteriori bound, from above; infinite if none was found.

    Args:
        alpha, beta: ``(B, k)``, float64.
        ritz: ``(B,)``, top eigenvalue of T.
        gamma: ``(B,)``.
        enough: of ``lam / ritz - 1``: where the root lies below, it is looked for less closely.
    """
    if math.isfinite(enough):
        widths = enough * torch.logspace(-2, 0, 9, dtype=alpha.dtype, device=alpha.device).expand(len(ritz), -1)
        bound, _ = _refine(alpha, beta, ritz, gamma, widths)
        if bool(torch.isfinite(bound).all()):
            return bound
    widths = _WIDTHS.to(alpha.device).expand(len(ritz), -1)
    for _ in range(3):
        bound, widths = _refine(alpha, beta, ritz, gamma, widths)
    return bound


def _refine(alpha: Tensor, beta: Tensor, ritz: Tensor, gamma: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """``ritz (1 + w)`` for the least of the widths ``(B, M)`` past the root; widths from the one before to it."""
    t = ritz.unsqueeze(1) * (1 + widths)
    past = log_growth(alpha, beta, t, gamma) >= TARGET
    # The last column which is not past it, and the one after it.
    first = (widths.shape[1] - past.flip(1).long().cumprod(1).sum(1)).unsqueeze(1)
    found = first < widths.shape[1]
    high = widths.gather(1, first.clamp(max=widths.shape[1] - 1))
    low = torch.where(first > 0, widths.gather(1, (first - 1).clamp(min=0)), 0.5 * high)
    steps = torch.linspace(0, 1, 13, dtype=widths.dtype, device=widths.device)
    bound = torch.where(found.squeeze(1), ritz * (1 + high.squeeze(1)), torch.inf)
    bound = torch.where(ritz > 0, bound, torch.where(beta.amax(1) > 0, torch.inf, 0.0))
    return bound, low * (high / low) ** steps


def probabilistic(
    problem: Problem,
    delta: float,
    rtol: float,
    max_steps: int,
    source: Source,
    *,
    want: Want,
) -> NormResult:
    """A fresh random start and Lanczos in float64, until upper <= (1 + rtol) lower or the steps run out."""
    replay = Replay(problem, _wide, source) if want is Want.LATER and isinstance(source, int) else None
    problem = _wide(problem)
    if reduction_pays(problem):
        options = (delta, rtol, max_steps, source)
        return by_reduction(problem, lambda part, want: probabilistic(part, *options, want=want), want)
    keep = want is not Want.NOTHING
    begin = random_start(problem, source)
    gamma = start_component(delta, problem.active().sum(1))

    def bound(state: Recurrence, values: Tensor) -> Tensor:
        # The eigenvalues of T are computed to some units of rounding: outward by far more.
        ritz = values[:, -1].clamp(min=0) * (1 + 1e-12)
        return polynomial_bound(state.alpha, state.beta, ritz, gamma[state.index], enough=(1 + rtol) ** 2 - 1)

    def done(state: Recurrence, values: Tensor, vector: Tensor) -> Tensor:
        # Whether the bound is as near as asked takes one point, the bound itself many.
        near = values[:, -1:] * (1 + rtol) ** 2
        return log_growth(state.alpha, state.beta, near, gamma[state.index])[:, 0] >= TARGET

    lower, upper, steps = begin.new_zeros(problem.size), begin.new_zeros(problem.size), 0
    top = torch.zeros_like(begin) if keep and replay is None else None
    groups = run(problem, begin, done, max_steps, keep)
    del begin
    for state, values, vector in groups:
        lower[state.index] = (values[:, -1].clamp(min=0) * (1 - 16 * ROUNDING)).sqrt()
        upper[state.index] = bound(state, values).sqrt()
        steps = max(steps, state.steps)
        if top is not None:
            top[state.index] = state.combine(vector)
        if replay is not None:
            replay.note(state, vector)
        del state  # with its vectors, which may be as many as are still to come
    left, right, _ = problem.singular_pair(top) if top is not None else (None, None, None)
    return NormResult(lower, upper, Certificate("probabilistic", delta), steps, left, right, recall=replay)


def _wide(problem: Problem) -> Problem:
    return problem.to(torch.float64)
