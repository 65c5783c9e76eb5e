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

#: Grid points per unit of degree: cos(pi/32) is 0.995.
POINTS_PER_DEGREE = 32


def gram_bound(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Upper bounds of the largest singular values of ``(g, r, c)`` float64 or complex128 matrices; ``(g,)``."""
    gram, margin = _gram(matrix)
    return (_Iteration(gram).after(iterations).bound() + margin).sqrt() * (1 + 4 * UNIT)


def largest_gram_bound(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Upper bound of the largest of all the norms, a scalar: matrices that cannot have it leave on the way."""
    gram, margin = _gram(matrix)
    state = _Iteration(gram)
    for _ in range(iterations):
        keep = (state.bound() >= state.least().amax() * (1 - 1e-9)).nonzero().squeeze(1)
        state, margin = state.select(keep), margin[keep]
        state.square()
    return (state.bound() + margin).amax().sqrt() * (1 + 4 * UNIT)


def _gram(matrix: Tensor) -> tuple[Tensor, Tensor]:
    small = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mH
    # A complex product has twice the terms.
    return small @ small.mH, gram_margin(2 * small.shape[2], small.abs().square().sum((1, 2)))


class _Iteration:
    """Matrices ``M_k / |M_k|_F``, and the scales taken out at every k."""

    def __init__(self, gram: Tensor) -> None:
        self.error = SLACK * 2 * (gram.shape[-1] + 4) * UNIT
        self.scales: list[Tensor] = []
        self._normalise(gram)

    def _normalise(self, matrix: Tensor) -> None:
        scale = torch.linalg.matrix_norm(matrix) * (1 + self.error)
        self.scales.append(scale)
        self.matrix = matrix / torch.where(scale > 0, scale, 1).reshape(-1, 1, 1)

    def square(self) -> None:
        self._normalise(self.matrix @ self.matrix)

    def after(self, steps: int) -> _Iteration:
        for _ in range(steps):
            self.square()
        return self

    def _undone(self, value: Tensor, error: float) -> Tensor:
        """A value of the last matrix, before its scale was taken out, as one of the first."""
        for scale in reversed(self.scales[:-1]):
            value = scale * (value + error).sqrt()
        return value

    def bound(self) -> Tensor:
        """Upper bounds of the top eigenvalues of the first matrices, ``(g,)``."""
        return self._undone(self.scales[-1], self.error)

    def least(self) -> Tensor:
        """Values the top eigenvalues reach but for rounding, ``(g,)``: ``lam_max >= trace(M^2) / trace(M)``."""
        trace = self.matrix.diagonal(dim1=1, dim2=2).real.sum(1)
        share = self.matrix.abs().square().sum((1, 2)) / torch.where(trace > 0, trace, 1)
        return self._undone(self.scales[-1] * share, 0.0)

    def select(self, index: Tensor) -> _Iteration:
        part = object.__new__(_Iteration)
        part.error, part.matrix = self.error, self.matrix[index]
        part.scales = [scale[index] for scale in self.scales]
        return part


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
        index = (slice(None), slice(None), *tap)
        block[:, phase] += weight[index]
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
    for part in waves.split(max(1, (1 << 22) // example.numel())):
        symbol = (part @ stack.flatten(1)).reshape(-1, *example.shape)
        top = torch.maximum(top, largest_gram_bound(symbol, iterations))
    # Each symbol errs by a few roundings of every coefficient.
    error = SLACK * (len(shifts) + 16) * UNIT * sum(torch.linalg.matrix_norm(block) for block in coefficients.values())
    return (top + error) / math.sqrt(shortfall) * (1 + 8 * UNIT)
