"""Is ``t I - G`` positive definite? A Cholesky factorisation answers, and its rounding errors are known.

If floating-point Cholesky of a symmetric s x s matrix M runs to completion, the computed factor satisfies ``RᵀR = M +
E`` with ``|E_ij| <= g sqrt(m_ii m_jj)``, ``g = (s+1) u / (1 - 2 (s+1) u)``, in whatever order the sums are formed
(Higham,
*Accuracy and Stability of Numerical Algorithms*, Thm 10.3; Demmel 1989; Rump, *Verification of positive
definiteness*, BIT 46, 2006). So ``|E|_2 <= g trace(M)``, and ``M >= -g trace(M)``: success at t proves ``lam_max(G)
<= t + g s t`` (the diagonal of a Gram matrix is not negative, so no diagonal entry of M exceeds t but for one
rounding). The same holds of block factorisations, which form the same sums in another order (Higham, ch. 13), and
costs a fifth of the eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Unit roundoff of float64, and a factor on every rounding bound, for constants not tracked one by one.
UNIT, SLACK = 2.0**-53, 4.0

#: Relative distances of t above the estimate of lam_max that are tried in turn.
DISTANCES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)

#: Up to this order the eigenvalues themselves are as cheap.
EIGEN_ORDER = 96


def gram_margin(terms: int, frobenius_square: Tensor) -> Tensor:
    """``|fl(BBᵀ) - BBᵀ|_2`` at most: each entry errs by ``terms u |B||B|ᵀ``, whose norm is at most ``|B|_F^2``."""
    return SLACK * (terms + 8) * UNIT * frobenius_square


def factor_margin(terms: int, order: int) -> float:
    """Relative amount by which lam_max may exceed an accepted t.

    Args:
        terms: length of the longest inner product of the factorisation.
        order: order of the whole matrix, which bounds ``trace(t I - G) / t``.
    """
    return SLACK * ((terms + 2) * UNIT * order + 2 * UNIT)


def escalate(
    guess: Tensor, accepted: Callable[[Tensor, Tensor], Tensor], distances: Sequence[float] = DISTANCES
) -> Tensor:
    """The first accepted ``guess * (1 + distance)`` of each sample, infinite where none was; ``(g,)``.

    Args:
        guess: ``(g,)``, estimates of the top eigenvalue; the better, the fewer factorisations.
        accepted: ``(index (n,), t (n,)) -> (n,)``, whether t is proven for the samples at the index.
    """
    bound = torch.full_like(guess, torch.inf)
    left = torch.arange(len(guess), device=guess.device)
    for distance in distances:
        t = guess[left] * (1 + distance)
        proven = accepted(left, t)
        bound[left[proven]] = t[proven]
        left = left[~proven]
        if not len(left):
            break
    return bound


def dense_top_eigenvalue(gram: Tensor, guess: Tensor, distances: Sequence[float] = DISTANCES) -> Tensor:
    """Upper bounds on the top eigenvalues of the matrices given; an error of the matrices themselves comes on top.

    Args:
        gram: ``(g, s, s)``, float64, positive semidefinite but for its error.
        guess: ``(g,)``.
    """
    order = gram.shape[-1]
    if order > EIGEN_ORDER:
        # Three factorisations cost less than the eigenvalues, which settle what is left.
        bound = escalate(guess, lambda index, t: _definite(gram[index], t), distances[:3])
        bound = bound * (1 + factor_margin(order, order))
    else:
        bound = torch.full_like(guess, torch.inf)
    left = torch.isinf(bound).nonzero().squeeze(1)
    if len(left):
        # syevd is backward stable: eigenvalues of G + E, |E|_2 <= p(s) u |G|_2, p modest (LAPACK Users' Guide, 4.7).
        norm = torch.linalg.matrix_norm(gram[left])
        values = torch.linalg.eigvalsh(gram[left])[:, -1].clamp(min=0)
        bound[left] = values + SLACK * (order + 8) * UNIT * norm
    return bound


def _definite(gram: Tensor, t: Tensor) -> Tensor:
    shifted = -gram
    shifted.diagonal(dim1=-2, dim2=-1).add_(t.unsqueeze(1))
    _, info = torch.linalg.cholesky_ex(shifted)
    return info == 0


def block_tridiagonal_definite(diagonal: Sequence[Tensor], coupling: Sequence[Tensor], t: float | Tensor) -> bool:
    """Whether block Cholesky of ``t I - G`` runs to completion, for a block tridiagonal G.

    Args:
        diagonal: blocks ``D_i``, ``(n_i, n_i)``.
        coupling: blocks ``U_i = G[i, i+1]``, ``(n_i, n_{i+1})``.
    """
    update = None
    for i, block in enumerate(diagonal):
        shifted = -block
        shifted.diagonal().add_(t)
        if update is not None:
            shifted -= update.mT @ update
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) != 0:
            return False
        if i < len(coupling):
            update = torch.linalg.solve_triangular(factor, coupling[i], upper=False)
    return True
