"""Upper bounds on the top eigenvalue of AᵀA from a Lanczos run with a random start.

Notation: ``G = AᵀA`` (or AAᵀ) acts on R^n, its top eigenvalue is ``lam`` with unit eigenvector ``z``; the start ``v_1`` is
uniform on the unit sphere; ``gamma = |z . v_1|``; ``T_k`` holds ``alpha_1..alpha_k`` and ``beta_1..beta_{k-1}``; ``beta_k``
is the norm of the residual after step k. Everything below holds *if* ``gamma >= gamma_min``.

**The chance of a small component** (`start_component`). The density of one coordinate of a uniform unit vector in R^n is
largest at 0, where it is ``Gamma(n/2) / (sqrt(pi) Gamma((n-1)/2)) <= sqrt(n / (2 pi))`` for n >= 2 (by the log-convexity
of Gamma: ``Gamma(n/2)^2 <= Gamma((n-1)/2) Gamma((n+1)/2) = Gamma((n-1)/2)^2 (n-1)/2``). So
``P(gamma < c) <= 2 c sqrt((n-1) / (2 pi)) <= c sqrt(2 n / pi)``, and ``gamma_min = delta sqrt(pi / (2 n))`` fails with
probability at most delta. A repeated top eigenvalue only helps: z is then any fixed unit vector of its eigenspace.

**A priori** (`a_priori_factor`; the bound of Kuczyński and Woźniakowski 1992, Thm 4.2, here with a short proof and for
every k >= 1). Let xi be the top Ritz value. It is the maximum of the Rayleigh quotient over ``q(G) v_1``, deg q < k, so
``sum_i gamma_i^2 q(lam_i)^2 (xi - lam_i) >= 0`` for every such q. Take ``q(xi y^2) = U_{2k-2}(y)``, a Chebyshev polynomial
of the second kind, even in y. For ``0 <= lam_i = xi y^2 <= xi``: ``q^2 (xi - lam_i) = xi (1 - y^2) U_{2k-2}(y)^2 =
xi sin^2((2k-1) arccos y) <= xi``; eigenvalues above xi other than lam only contribute negative terms. For
``lam = xi cosh^2 eta``: ``q^2 (lam - xi) = xi sinh^2((2k-1) eta)``. Hence ``gamma^2 sinh^2((2k-1) eta) <= 1 - gamma^2``:
``lam <= xi cosh^2( arcsinh(sqrt(1 - gamma_min^2) / gamma_min) / (2k - 1) )``.

**A posteriori** (`polynomial_root`; Hochstenbach 2013, sec. 3). The Lanczos vectors are ``v_{j+1} = p_j(G) v_1`` with
``p_0 = 1`` and ``beta_{j+1} p_{j+1} = (t - alpha_{j+1}) p_j - beta_j p_{j-1}``. As ``v_{j+1}`` has norm one,
``gamma |p_j(lam)| = |z . v_{j+1}| <= 1``. Beyond the top Ritz value of T_j, p_j is positive and increasing, so lam is at
most the root of ``p_j(t) = 1 / gamma_min``. Orthonormal ``v_1..v_{k+1}`` give more, Bessel's inequality:
``gamma^2 sum_{j<=k} p_j(lam)^2 <= 1``, whose root is never larger; it is used where the vectors were kept orthogonal.

References:
    J. Kuczyński, H. Woźniakowski: Estimating the largest eigenvalue by the power and Lanczos algorithms with a random
    start. SIAM J. Matrix Anal. Appl. 13 (1992), 1094-1122.
    M. E. Hochstenbach: Probabilistic upper bounds for the matrix two-norm. J. Sci. Comput. 57 (2013), 464-476.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def start_component(delta: float, dimension: Tensor) -> Tensor:
    """``gamma_min``: the least start component along the top eigenvector, but for probability delta.

    Args:
        delta: failure probability, in (0, 1).
        dimension: ``(B,)``, dimension n of the space from which the start is drawn.
    """
    return (delta * (math.pi / 2 / dimension.clamp(min=1)).sqrt()).clamp(max=1.0)


def a_priori_factor(gamma: Tensor, steps: int) -> Tensor:
    """``lam / xi`` at most, after ``steps`` Lanczos steps; ``(B,)``."""
    reach = torch.asinh((1 - gamma * gamma).clamp(min=0).sqrt() / gamma)
    return torch.cosh(reach / (2 * steps - 1)).square()


def log_growth(alpha: Tensor, beta: Tensor, t: Tensor) -> Tensor:
    """``log max_j p_j(t)`` at points t at or beyond every Ritz value; ``(B,)``.

    With ``r_j = beta_j p_j / p_{j-1} = (t - alpha_j) - beta_{j-1}^2 / r_{j-1}``, all positive beyond the top Ritz value.

    Args:
        alpha, beta: ``(B, k)``, with ``beta[:, -1]`` the last residual norm.
    """
    log_p = torch.zeros_like(t)
    best = torch.zeros_like(t)
    ratio = t - alpha[:, 0]
    for j in range(alpha.shape[1]):
        if j:
            ratio = (t - alpha[:, j]) - beta[:, j - 1].square() / ratio
        log_p = log_p + ratio.clamp(min=1e-300).log() - beta[:, j].clamp(min=1e-300).log()
        best = torch.maximum(best, log_p)
    return best


def polynomial_root(alpha: Tensor, beta: Tensor, ritz: Tensor, upper: Tensor, gamma: Tensor, halvings: int = 40) -> Tensor:
    """Least t known, by bisection, with ``max_j p_j(t) >= 1 / gamma_min``; never below the root, never above ``upper``.

    Args:
        alpha, beta: ``(B, k)``.
        ritz: ``(B,)``, the top Ritz value (from above, by its rounding).
        upper: ``(B,)``, a bound known already, where the search begins.
        gamma: ``(B,)``.
    """
    low, high = ritz.clone(), upper.clone()
    target = -gamma.log()
    for _ in range(halvings):
        middle = (low + high) / 2
        enough = log_growth(alpha, beta, middle) >= target
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, middle)
    return high
