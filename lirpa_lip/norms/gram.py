"""Gram iteration: bounds from above by matrix products alone.

``M_0 = BBᵀ``, ``M_{k+1} = M_k^2``: ``lam_max(M_0) = lam_max(M_k)^(1/2^k) <= |M_k|_F^(1/2^k)``, which falls to lam_max
twice as fast, in digits, with each product (Delattre, Barthélemy, Araujo, Allauzen: *Efficient bound of Lipschitz
constant for convolutional layers by Gram iteration*, ICML 2023). Rescaled to norm one each time, the computed product
errs by ``|E| <= s u``, so that ``lam_max(M_k)^2 <= f lam_max(M_{k+1}) + s u`` with f the scale taken out: the
recursion is undone with these errors in it, since without them the result may fall below lam_max by rounding.

**Unmasked convolutions, zero-padded.** The zero-padded convolution is a compression of the one on the infinite grid,
so its norm is at most the supremum over frequencies of ``|D(theta)|_2``, with the symbol ``D(theta) = sum_q W_q exp(i
q theta)``. A stride s is taken up by reading s x s input pixels as channels: input ``s y + r`` is pixel y, channel r,
and tap ``d k = s q + r``. For a fixed vector v, ``v* D* D v`` is a real trigonometric polynomial in each frequency,
of degree Q, the largest difference of q along that axis. On N > 2Q equispaced points such a polynomial that is not
negative satisfies ``max <= max over the points / cos(pi Q / N)`` (Ehlich and Zeller, Math. Z. 86, 1964; cf. Delattre
et al., Thm 3.1). So the largest value on the grid, over the product of these cosines, bounds the supremum.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lirpa_lip.norms.cholesky import SLACK, UNIT, gram_margin
from lirpa_lip.norms.linear_map import ConvMap

#: Products; the last bound exceeds lam_max by a factor of at most s^(1/2^(ITERATIONS+1)).
ITERATIONS = 8

#: Grid points per unit of degree: cos(pi/48) is 0.998.
POINTS_PER_DEGREE = 48


def gram_bound(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Upper bounds of the largest singular values of ``(g, r, c)`` float64 or complex128 matrices; ``(g,)``."""
    small = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mH
    margin = gram_margin(2 * small.shape[2], small.abs().square().sum((1, 2)))
    return (_top_eigenvalue_bound(small @ small.mH, iterations) + margin).sqrt() * (1 + 4 * UNIT)


def _top_eigenvalue_bound(gram: Tensor, iterations: int) -> Tensor:
    error = SLACK * 2 * (gram.shape[-1] + 4) * UNIT
    scales = []
    for step in range(iterations + 1):
        scale = torch.linalg.matrix_norm(gram) * (1 + error)
        scales.append(scale)
        if step < iterations:
            gram = gram / torch.where(scale > 0, scale, 1).reshape(-1, 1, 1)
            gram = gram @ gram
    bound = scales.pop()
    for scale in reversed(scales):
        bound = scale * (bound + error).sqrt()
    return bound


def convolution_bound(conv: ConvMap, iterations: int = ITERATIONS) -> Tensor:
    """Upper bound of the norm of a convolution without masks, whatever the size of its input; a float64 scalar."""
    weight = conv.weight.double()
    best = weight.new_zeros(())
    rows = weight.shape[0] // conv.groups
    for group in range(conv.groups):
        phases, degrees = _phases(weight[group * rows : (group + 1) * rows], conv.stride, conv.dilation)
        best = torch.maximum(best, _symbol_bound(phases, degrees, iterations))
    return best


def _phases(weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[dict, list[int]]:
    """Coefficients ``W_q``, ``(out, in * phases)``, by q; and the degree along each axis."""
    out, channels, *kernel = weight.shape
    if all(step == 1 for step in stride):
        dilation = (1,) * len(kernel)  # a dilated convolution interleaves copies of the dense one: the same norm
    coefficients: dict[tuple[int, ...], Tensor] = {}
    phase_count = math.prod(stride)
    for tap in itertools.product(*(range(k) for k in kernel)):
        places = [divmod(d * k, s) for d, k, s in zip(dilation, tap, stride, strict=True)]
        q = tuple(place[0] for place in places)
        phase = 0
        for place, s in zip(places, stride, strict=True):
            phase = phase * s + place[1]
        block = coefficients.setdefault(q, weight.new_zeros(out, phase_count, channels))
        block[:, phase] += weight[(slice(None), slice(None), *tap)]
    degrees = [max(q[axis] for q in coefficients) for axis in range(len(kernel))]
    return {q: block.flatten(1) for q, block in coefficients.items()}, degrees


def _symbol_bound(coefficients: dict, degrees: list[int], iterations: int) -> Tensor:
    points = [1 if degree == 0 else POINTS_PER_DEGREE * degree for degree in degrees]
    shortfall = math.prod(math.cos(math.pi * q / n) for q, n in zip(degrees, points, strict=True))
    example = next(iter(coefficients.values()))
    # D(-theta) is the conjugate of D(theta): half of the first axis is enough.
    options = {"dtype": torch.float64, "device": example.device}
    counts = [points[0] // 2 + 1, *points[1:]]
    axes = [torch.arange(count, **options) * (2 * math.pi / n) for count, n in zip(counts, points, strict=True)]
    theta = torch.cartesian_prod(*axes).reshape(-1, len(points))
    shifts = torch.tensor(list(coefficients), **options)
    stack = torch.stack(list(coefficients.values())).to(torch.complex128)
    angles = theta @ shifts.mT
    waves = torch.polar(torch.ones_like(angles), angles)
    top = example.new_zeros(())
    for part in waves.split(max(1, (1 << 23) // example.numel())):
        symbol = (part @ stack.flatten(1)).reshape(-1, *example.shape)
        top = torch.maximum(top, _largest(symbol, iterations))
    # Each symbol errs by a few roundings of every coefficient.
    error = SLACK * (len(shifts) + 16) * UNIT * sum(torch.linalg.matrix_norm(block) for block in coefficients.values())
    return (top + error) / math.sqrt(shortfall) * (1 + 8 * UNIT)


def _largest(matrices: Tensor, iterations: int) -> Tensor:
    """Upper bound of all norms; matrices that cannot have the largest one leave after each round of products."""
    for rounds in range(1, iterations):
        bound = gram_bound(matrices, rounds)
        squares = matrices @ matrices.mH if matrices.shape[1] <= matrices.shape[2] else matrices.mH @ matrices
        trace = squares.diagonal(dim1=1, dim2=2).real.sum(1)
        # lam_max >= trace(M^2) / trace(M)
        least = (squares.abs().square().sum((1, 2)) / torch.where(trace > 0, trace, 1)).amax().sqrt()
        matrices = matrices[bound >= least * (1 - 1e-9)]
        if len(matrices) <= 8:
            break
    return gram_bound(matrices, iterations).amax()
