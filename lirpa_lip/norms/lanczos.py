"""Lanczos on the smaller Gram operator of each sample, for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.norms.problem import Problem


@dataclass
class LanczosRun:
    """The recurrence after k steps.

    Attributes:
        alpha, beta: ``(B, k)``; ``beta[:, -1]`` is the norm of the last residual. Past an invariant subspace both are 0.
        basis: ``(B, k, n)``, the Lanczos vectors.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Top eigenvalue ``(B,)`` of the tridiagonal matrix, and the Ritz vector ``(B, n)``."""
        off = self.beta[:, :-1]
        matrix = torch.diag_embed(self.alpha) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        top = (vectors[:, None, :, -1] @ self.basis).squeeze(1)
        return values[:, -1].clamp(min=0), top


def lanczos(problem: Problem, start: Tensor, steps: int) -> LanczosRun:
    """``steps`` steps from ``start`` ``(B, n)``, fully reorthogonalised."""
    v = start / start.norm(dim=1, keepdim=True).clamp(min=torch.finfo(start.dtype).tiny)
    alphas, betas, basis = [], [], []
    scale = torch.zeros(problem.size, dtype=start.dtype, device=start.device)
    for _ in range(steps):
        basis.append(v)
        w = problem.gram(v)
        scale = torch.maximum(scale, w.norm(dim=1))
        alphas.append((v * w).sum(1))
        stack = torch.stack(basis, 1)
        for _ in range(2):
            w = w - ((stack @ w.unsqueeze(-1)).mT @ stack).squeeze(1)
        norm = w.norm(dim=1)
        # What is left below rounding is noise: the Krylov space is exhausted.
        alive = norm > 8 * torch.finfo(start.dtype).eps * scale
        norm = torch.where(alive, norm, 0.0)
        betas.append(norm)
        v = torch.where(alive.unsqueeze(1), w / torch.where(alive, norm, 1.0).unsqueeze(1), 0.0)
    return LanczosRun(torch.stack(alphas, 1), torch.stack(betas, 1), torch.stack(basis, 1))
