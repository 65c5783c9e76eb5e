"""The power method exactly as the published Local-Lip code runs it: baseline and reproduction, an estimate only.

Huang et al., *Training Certifiably Robust Neural Networks with Efficient Local Lipschitz Bounds*, NeurIPS 2021, code
``Local_bound.py``: the start has the shape of the layer's input and is random unless stored; each step masks, applies
A, masks, normalises, applies Aᵀ, masks, normalises; the whole batch stops together, once no sample's unit vector
changed by 1e-3 or more, or at the step limit; the value is ``|A u|``.
"""

from __future__ import annotations

from torch import Tensor

from lirpa_lip.norms.draw import Source, normal
from lirpa_lip.norms.problem import Problem
from lirpa_lip.norms.result import NormResult
from lirpa_lip.results import ESTIMATE

#: The published limit on the change of the unit vector, and its guard against division by zero.
VECTOR_CHANGE, EPS = 1e-3, 1e-12


def power(
    problem: Problem,
    start: Tensor | None,
    max_steps: int,
    source: Source,
    tolerance: float = VECTOR_CHANGE,
) -> NormResult:
    """``|A u|`` after the power method, shape ``(B,)``, from below.

    Args:
        start: ``(B, *in_shape)`` or ``None`` for a random one.
    """
    linear_map, mask_in, mask_out = problem.map, problem.mask_in, problem.mask_out
    if start is None:
        shape = (problem.size, *linear_map.in_shape)
        start = normal(shape, linear_map.dtype, linear_map.device, source)
    # The published masks are 0/1, where a second multiplication changes nothing; other scales need it.
    again = None if mask_out is None or bool((mask_out * mask_out == mask_out).all()) else mask_out
    u, steps = start, 0
    while steps < max_steps:
        before, steps = u, steps + 1
        v = _normalised(_masked(linear_map.forward(_masked(u, mask_in)), mask_out))
        u = _normalised(_masked(linear_map.adjoint(_masked(v, again)), mask_in))
        if (u - before).flatten(1).norm(dim=1).max() < tolerance:
            break
    image = _masked(linear_map.forward(_masked(u, mask_in)), mask_out)
    sigma = image.flatten(1).norm(dim=1)
    return NormResult(sigma, sigma, ESTIMATE, steps, _normalised(image), u)


def _masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return tensor if mask is None else tensor * mask


def _normalised(tensor: Tensor) -> Tensor:
    norm = tensor.flatten(1).norm(dim=1)
    return tensor / (norm + EPS).reshape(-1, *[1] * (tensor.ndim - 1))
