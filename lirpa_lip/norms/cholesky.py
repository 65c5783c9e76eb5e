"""Is ``t I - G`` positive definite? A Cholesky factorisation answers, and its rounding errors are known.

If floating-point Cholesky of a symmetric s x s matrix M runs to completion, the computed factor satisfies ``RᵀR = M + E``
with ``|E_ij| <= g sqrt(m_ii m_jj)``, ``g = (s+1) u / (1 - 2 (s+1) u)``, in whatever order the sums are formed (Higham,
*Accuracy and Stability of Numerical Algorithms*, Thm 10.3; Demmel 1989; Rump, *Verification of positive definiteness*, BIT
46, 2006). So ``|E|_2 <= g trace(M)``, and ``M >= -g trace(M)``: success at t proves ``lam_max(G) <= t + g s t`` (the
diagonal of a Gram matrix is not negative, so no diagonal entry of M exceeds t but for one rounding). That is tighter than an
eigensolver's error bound, and about a fifth of its cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Unit roundoff of float64, and a factor on every rounding bound, for constants not tracked one by one.
UNIT, SLACK = 2.0**-53, 4.0

#: Relative distances of t above the estimate of lam_max that are tried, in turn, before the eigenvalues are computed.
DISTANCES = (1e-5, 1e-4, 1e-3)

#: Up to this order the eigenvalues themselves are as cheap.
EIGEN_ORDER = 96


def factor_margin(order: int, trace_over_t: float) -> float:
    """Relative amount by which lam_max may exceed a t that was accepted.

    Args:
        order: terms in the longest inner product of the factorisation.
        trace_over_t: ``trace(t I - G) / t``, at most the order of the matrix.
    """
    return SLACK * ((order + 2) * UNIT * trace_over_t + 2 * UNIT)


def gram_margin(terms: int, frobenius_square: Tensor) -> Tensor:
    """``|fl(BBᵀ) - BBᵀ|_2`` at most: each entry errs by ``terms u |B||B|ᵀ``, whose norm is at most ``|B|_F^2``."""
    return SLACK * (terms + 2) * UNIT * frobenius_square


def top_eigenvalue_bound(gram: Tensor, guess: Tensor) -> Tensor:
    """Upper bounds on the top eigenvalues of positive semidefinite matrices, as computed: their own error comes on top.

    Args:
        gram: ``(g, s, s)``, symmetric, float64.
        guess: ``(g,)``, estimates of the top eigenvalue; the better, the fewer factorisations.
    """
    order = gram.shape[-1]
    if order > EIGEN_ORDER:
        bound = torch.full_like(guess, torch.inf)
        margin = factor_margin(order, order)
        for distance in DISTANCES:
            left = torch.isinf(bound).nonzero().squeeze(1)
            t = guess[left] * (1 + distance)
            accepted = definite(gram[left], t)
            bound[left[accepted]] = t[accepted] * (1 + margin)
            if bool(accepted.all()):
                return bound
    else:
        bound = torch.full_like(guess, torch.inf)
    left = torch.isinf(bound).nonzero().squeeze(1)
    # syevd is backward stable: eigenvalues of G + E, |E|_2 <= p(s) u |G|_2; p(s) = s by far (LAPACK Users' Guide, 4.7).
    norm = torch.linalg.matrix_norm(gram[left])
    bound[left] = torch.linalg.eigvalsh(gram[left])[:, -1].clamp(min=0) + SLACK * (order + 2) * UNIT * norm
    return bound


def definite(gram: Tensor, t: Tensor) -> Tensor:
    """Whether the factorisation of ``t I - G`` runs to completion, ``(g,)``."""
    shifted = -gram
    shifted.diagonal(dim1=-2, dim2=-1).add_(t.unsqueeze(1))
    _, info = torch.linalg.cholesky_ex(shifted)
    return info == 0
