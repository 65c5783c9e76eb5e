"""Norms of small matrices in 60 digits, and every solver by its name."""

from __future__ import annotations

import mpmath
from torch import Tensor

from lirpa_lip.norms import NormResult, masked_spectral_norm
from lirpa_lip.norms.solve import SOLVERS

Matrix = mpmath.matrix
METHODS = list(SOLVERS)


def exact(matrix: Tensor) -> Matrix:
    """The entries, without rounding."""
    return mpmath.matrix([[mpmath.mpf(x) for x in row] for row in matrix.double().tolist()])


def exact_norm(matrix: Matrix) -> mpmath.mpf:
    """Largest singular value to 40 digits, as the root of the top eigenvalue of the smaller Gram matrix."""
    with mpmath.workdps(60):
        gram = matrix.T * matrix if matrix.cols <= matrix.rows else matrix * matrix.T
        largest = max(abs(x) for x in gram)
        if largest == 0:
            return mpmath.mpf(0)
        values = mpmath.eigsy(gram / largest, eigvals_only=True)
        return mpmath.sqrt(max(values) * largest)


def solve(method: str, *arguments, **options) -> NormResult:
    return masked_spectral_norm(*arguments, method=method, certificate=SOLVERS[method].certificate, **options)
