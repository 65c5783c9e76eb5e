"""Schur's test: a deterministic bound for any masked map of known ``|A|``.

For every positive vector x, ``|A|_2^2 <= lam_max(|A|ᵀ|A|) <= max_j (|A|ᵀ|A| x)_j / x_j`` (Schur 1911; Collatz 1942),
the maximum over coordinates that are not masked. Power steps on ``|A|ᵀ|A|`` make x a good one, and every step's x
gives a bound, of which the least is returned. The gap ``| |A| |_2 / |A|_2`` remains: nothing sees the signs of A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.norms.cholesky import SLACK, UNIT
from lirpa_lip.norms.problem import Problem

#: Power steps, and the least weight of a live coordinate relative to the largest.
STEPS, FLOOR = 12, 1e-6


def schur_bound(problem: Problem) -> Tensor:
    """Upper bounds of the norms, ``(B,)``, float64.

    Raises:
        NotImplementedError: the map does not know its entries.
    """
    problem = problem.to(torch.float64)
    masks = [None if mask is None else mask.abs() for mask in (problem.mask_in, problem.mask_out)]
    absolute = Problem(problem.map.abs(), problem.size, masks[0], masks[1])
    live = problem.active()
    weight = live.double()
    # Sums of non-negative numbers: their relative error is at most the number of terms, in units of rounding.
    margin = 1 + SLACK * (problem.map.in_numel + problem.map.out_numel + 8) * UNIT
    best = torch.full((problem.size,), torch.inf, dtype=torch.float64, device=weight.device)
    for _ in range(STEPS):
        # A convolution by FFT or Winograd could leave a tiny negative number: it counts as 0.
        image = absolute.gram(weight).clamp(min=0)
        ratio = torch.where(live, image / torch.where(live, weight, 1), 0)
        best = torch.minimum(best, ratio.amax(1) * margin)
        largest = image.amax(1, keepdim=True)
        weight = torch.where(live, torch.maximum(image, FLOOR * largest), 0)
        # A sample whose image is 0 is bounded by 0 already; any positive weight will do.
        weight = torch.where(live & (largest == 0), 1.0, weight / torch.where(largest > 0, largest, 1))
    return best.sqrt() * (1 + 4 * UNIT)
