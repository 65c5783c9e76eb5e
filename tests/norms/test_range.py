"""Norms of any scale, against mpmath: no underflow that turns into 0, no last bit on the wrong side."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from networks.maps import BUILDERS, masks
from references.norms import METHODS, Matrix, exact, exact_norm, solve
from torch import Tensor

from lirpa_lip.norms import NormResult, masked_spectral_norm
from lirpa_lip.norms.linear_map import (
    ComposedMap,
    Conv2dMap,
    ConvTranspose2dMap,
    DenseMap,
    DiagonalMap,
    FunctionMap,
    IdentityMap,
    LinearMap,
    SumMap,
)
from lirpa_lip.norms.powers import exponents, outward, power_of_two, times_power
from lirpa_lip.norms.solve import SOLVERS

CERTIFIED = [name for name, solver in SOLVERS.items() if solver.certificate != "estimate"]
#: How far above sigma each method may lie on the small matrices here; the others see no signs.
TIGHT = {"polynomial": 1e-2, "cholesky": 2e-5, "gram": 2e-2}


def masked(matrix: Tensor, mask_in: Tensor | None, mask_out: Tensor | None) -> Matrix:
    """``diag(mask_out) A diag(mask_in)`` without rounding."""
    with mpmath.workdps(200):
        found = exact(matrix)
        for i in range(found.rows):
            for j in range(found.cols):
                row = 1 if mask_out is None else mpmath.mpf(mask_out.flatten()[i].item())
                column = 1 if mask_in is None else mpmath.mpf(mask_in.flatten()[j].item())
                found[i, j] = row * found[i, j] * column
        return found


def check(method: str, result: NormResult, norms: list[mpmath.mpf], factor: float = 1.0) -> None:
    """Bounds hold without any allowance, and estimates and tight methods are near."""
    dtype = result.upper.dtype
    least = float(np.nextafter(np.float32(0) if dtype == torch.float32 else 0.0, 1))
    eps = torch.finfo(dtype).eps
    for lower, upper, norm in zip(result.lower.tolist(), result.upper.tolist(), norms, strict=True):
        if result.certified:
            assert lower <= norm <= upper, (method, lower, upper, norm)
            assert (upper == 0) == (norm == 0)
            if method in TIGHT:
                assert upper <= norm * (1 + TIGHT[method] * factor + 4 * eps) + 2 * least, (method, upper, norm)
            assert lower >= norm * (1 - 2e-2) - 2 * least
        else:
            assert abs(upper - norm) <= norm * (2e-2 + 4 * eps) + 2 * least, (method, upper, norm)


SCALES = {
    torch.float32: (1e-44, 1e-38, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e20, 3e37),
    torch.float64: (3e-323, 1e-310, 1e-200, 1e-170, 1e-100, 1e-30, 1.0, 1e40, 1e100, 1e160, 1e200, 1e307),
}


@pytest.mark.parametrize("dtype", SCALES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_weights_of_any_scale(method: str, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (5, 3), (3, 7)):
        base = torch.randn(shape, dtype=torch.float64).clamp(-2, 2)
        for scale in SCALES[dtype]:
            weight = (base * scale).to(dtype)
            check(method, solve(method, DenseMap(weight)), [exact_norm(exact(weight))])


@pytest.mark.parametrize("dtype", SCALES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_masks_of_any_scale(method: str, dtype: torch.dtype) -> None:
    """Every sample at a scale of its own, one with masks that compensate each other; and the weights are extreme."""
    low, high = (1e-30, 1e30) if dtype == torch.float32 else (1e-200, 1e200)
    denormal = 1e-42 if dtype == torch.float32 else 1e-314
    for weight_scale in (1.0, low**0.5, high**0.5):
        weight = (torch.randn(5, 4, dtype=torch.float64) * weight_scale).to(dtype)
        factors_in = torch.tensor([1.0, low, high**0.5, denormal, 0.0, low, low], dtype=dtype)
        factors_out = torch.tensor([1.0, high, 1.0, 1.0, 1.0, 1.0, low], dtype=dtype)
        mask_in = (torch.rand(7, 4).to(dtype) + 0.25) * factors_in.unsqueeze(1)
        mask_out = (torch.rand(7, 5).to(dtype) + 0.25) * factors_out.unsqueeze(1)
        norms = [exact_norm(masked(weight, *pair)) for pair in zip(mask_in, mask_out, strict=True)]
        check(method, solve(method, DenseMap(weight), mask_in, mask_out), norms)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", SCALES, ids=str)
def test_what_is_left_may_be_tiny_beside_what_is_masked(method: str, dtype: torch.dtype) -> None:
    big, small = (1e30, 1e-30) if dtype == torch.float32 else (1e300, 1e-300)
    weight = torch.tensor([[big, small], [-big, 2 * small], [big, small]], dtype=dtype)
    mask_in = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [small, 1.0]], dtype=dtype)
    norms = [exact_norm(masked(weight, mask, None)) for mask in mask_in]
    check(method, solve(method, DenseMap(weight), mask_in), norms, 10)
    conv = Conv2dMap(weight.reshape(3, 2, 1, 1), (2, 1, 1))
    result = solve(method, conv, mask_in.reshape(4, 2, 1, 1))
    if method == "gram":  # which takes the convolution without its masks
        assert all(upper >= norm for upper, norm in zip(result.upper.tolist(), norms, strict=True))
    else:
        check(method, result, norms, 10)


@pytest.mark.parametrize("method", CERTIFIED)
def test_the_last_bit(method: str) -> None:
    """1 x 1 maps, repeated values and small matrices in either precision: bounds never cross the norm."""
    for dtype in (torch.float32, torch.float64):
        for _ in range(30):
            n, m = (int(k) for k in torch.randint(1, 5, (2,)))
            weight = torch.randn(n, m, dtype=dtype)
            mask = torch.rand(2, m, dtype=dtype)
            check(method, solve(method, DenseMap(weight)), [exact_norm(exact(weight))])
            norms = [exact_norm(masked(weight, row, None)) for row in mask]
            check(method, solve(method, DenseMap(weight), mask), norms)
            value = torch.randn((), dtype=dtype)
            norm = abs(mpmath.mpf(value.item()))
            check(method, solve(method, DenseMap(value * torch.eye(n, dtype=dtype))), [norm])
            check(method, solve(method, DenseMap(value.reshape(1, 1))), [norm])
            rows = torch.stack([mask[0], mask[0].flip(0)])
            check(method, solve(method, IdentityMap((m,), dtype), rows), [mpmath.mpf(mask[0].max().item())] * 2)


@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in ("large", "wide", "tall", "strided", "conv1d")])
@pytest.mark.parametrize("method", ["lanczos", "polynomial", "cholesky"])
def test_every_kind_of_map_at_extreme_scales(method: str, name: str) -> None:
    """A power of two in front of the masks, or of the tensors, is one in front of the norm, with the same bounds."""
    for dtype, power in ((torch.float64, 700), (torch.float32, 100)):
        linear_map = BUILDERS[name](dtype)
        mask_in, mask_out = masks(linear_map, 0.3, True)
        options = {"rtol": 1e-7, "max_iterations": 300, "seed": 5}
        plain = solve(method, linear_map, mask_in, mask_out, **options)
        for sign in (-1, 1):
            factor = float(2.0 ** (sign * power))
            found = solve(method, linear_map, mask_in, mask_out * factor, **options)
            torch.testing.assert_close(found.upper, plain.upper * factor, rtol=1e-5, atol=0)
            torch.testing.assert_close(found.lower, plain.lower * factor, rtol=2e-4, atol=0)
            assert ((found.upper == 0) == (plain.upper == 0)).all()


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_diagonals_and_masks_beyond_the_range_of_their_product(method: str, gradient: bool) -> None:
    """Samples whose products of entries no float64 holds beside others, with and without a gradient."""
    scale = torch.tensor([1e200, 1e-250, 3.0], dtype=torch.float64, requires_grad=gradient)
    rows = [[0.0, 1e-70, 0.0], [1e100, 0.0, 0.0], [1e-200, 1e250, 0.0], [0.0, 1.0, 0.0], [1e-300, 1e300, 1.0]]
    mask_in = torch.tensor(rows, dtype=torch.float64)
    result = solve(method, DiagonalMap(scale, (3,)), mask_in)
    norms = [exact_norm(masked(torch.diag(scale.detach()), row, None)) for row in mask_in]
    check(method, result, norms)
    if gradient:
        (found,) = torch.autograd.grad(result.upper[[1, 3]].sum(), scale)
        assert found.isfinite().all()


def chain(scales: list[float], dtype: torch.dtype, size: int = 4) -> tuple[LinearMap, Matrix]:
    weights = [torch.randn(size, size, dtype=torch.float64).mul(scale).to(dtype) for scale in scales]
    with mpmath.workdps(60):
        product = exact(weights[-1])
        for weight in reversed(weights[:-1]):
            product = exact(weight) * product
    return ComposedMap([DenseMap(weight) for weight in weights]), product


@pytest.mark.parametrize("method", ["power", "lanczos", "polynomial", "cholesky"])
@pytest.mark.parametrize("dtype", SCALES, ids=str)
def test_compositions_pass_through_any_scale(method: str, dtype: torch.dtype) -> None:
    small, big = (1e-30, 1e30) if dtype == torch.float32 else (1e-150, 1e150)
    options = {"max_iterations": 300}
    for scales in ([big] * 6 + [small] * 6, [small] * 6 + [big] * 6, [small, big] * 3):
        linear_map, product = chain(scales, dtype)
        check(method, solve(method, linear_map, **options), [exact_norm(product)])
    # a sum of two of them, which must keep their proportion
    one, first = chain([big] * 4 + [small] * 4, dtype)
    two, second = chain([small] * 4 + [big] * 4, dtype)
    with mpmath.workdps(60):
        norm = exact_norm(first + second)
    check(method, solve(method, SumMap([one, two]), **options), [norm])


@pytest.mark.parametrize("method", ["polynomial", "cholesky"])
def test_what_underflows_is_never_zero(method: str) -> None:
    """``diag(1, t) diag(t, 1)`` is t times the identity: of many such pairs no float64 holds the entries."""
    tiny = 2.0**-600
    one, two = torch.tensor([1.0, tiny], dtype=torch.float64), torch.tensor([tiny, 1.0], dtype=torch.float64)
    pair = [DenseMap(torch.diag(one)), DenseMap(torch.diag(two))]
    assert solve(method, ComposedMap(pair)).upper.item() == pytest.approx(tiny, rel=1e-2)
    for count in (2, 4):
        result = solve(method, ComposedMap(pair * count))
        assert result.upper.item() > 0 and result.lower.item() <= tiny**count
    diagonal = [DiagonalMap(one, (2,)), DiagonalMap(two, (2,))]
    for count in (2, 4):
        assert solve(method, ComposedMap(diagonal * count)).upper.item() > 0
    # with a large factor the norm is one that float64 does hold
    big = ComposedMap([DenseMap(torch.eye(2, dtype=torch.float64) * 2.0**600)] * 2 + pair * 2)
    assert solve(method, big).upper.item() >= 1
    moved = FunctionMap(lambda x: x.flip(1), (2,), torch.float64, monomial=True, entries_nonnegative=True)
    assert solve(method, ComposedMap([*pair, moved, *pair, moved, *pair])).upper.item() > 0


@pytest.mark.parametrize("method", ["polynomial", "cholesky"])
def test_what_lies_below_the_range_is_bounded(method: str) -> None:
    """A norm far below what scaling sees, because a large mask meets a column of zeros: bounds hold, loose or not."""
    weight = torch.zeros(5, 5, dtype=torch.float64)
    weight[:4, :4] = torch.randn(4, 4)
    mask_in = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0**900]], dtype=torch.float64)
    with mpmath.workdps(60):
        norm = exact_norm(exact(weight))
    for power in range(0, 1000, 20):
        small = torch.full((5,), 2.0**-power, dtype=torch.float64)
        small[4] = 1
        result = solve(method, ComposedMap([DenseMap(torch.diag(small)), DenseMap(weight)]), mask_in)
        with mpmath.workdps(60):
            assert result.lower.item() <= norm * mpmath.mpf(2) ** -power <= result.upper.item(), power


@pytest.mark.parametrize("method", CERTIFIED)
def test_zero_is_zero(method: str) -> None:
    """A map without a way through has the norm 0, in every form."""
    zero = torch.zeros(3, 4, dtype=torch.float64)
    kinds: list[LinearMap] = [
        DenseMap(zero),
        Conv2dMap(zero.reshape(3, 4, 1, 1), (4, 2, 2)),
        ConvTranspose2dMap(zero.reshape(3, 4, 1, 1), (3, 2, 2)),
        DiagonalMap(zero[0], (4,)),
    ]
    if method in ("polynomial", "cholesky"):
        first, second = torch.diag(torch.tensor([1.0, 0.0])).double(), torch.diag(torch.tensor([0.0, 1.0])).double()
        kinds += [ComposedMap([DenseMap(first), DenseMap(second)]), SumMap([DenseMap(zero), DenseMap(zero)])]
    for linear_map in kinds:
        result = solve(method, linear_map)
        assert result.lower.item() == result.upper.item() == 0
    # entries of a masked matrix that are 0, while none of its rows and columns is
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    result = solve(method, DenseMap(weight), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert result.lower.item() == result.upper.item() == 0


def test_norms_beyond_the_range() -> None:
    """Infinite from above, the largest number from below; the least number is above what is smaller."""
    weight = torch.full((9, 9), 3e38)
    result = masked_spectral_norm(DenseMap(weight), certificate="deterministic")
    assert result.upper.item() == float("inf") and result.lower.item() == torch.finfo(torch.float32).max
    small = masked_spectral_norm(DenseMap(torch.full((1, 1), 1e-30)), torch.tensor([[1e-30]]))
    assert small.lower.item() == 0 and 0 < small.upper.item() < 1e-44
    wide = masked_spectral_norm(DenseMap(torch.ones(1, 1)), torch.tensor([[1e-60]], dtype=torch.float64))
    assert 0 < wide.upper.item() < 1e-44


@pytest.mark.parametrize("certificate", ["deterministic", "probabilistic", "estimate"])
@pytest.mark.parametrize("dtype", SCALES, ids=str)
def test_gradients_at_any_scale(certificate: str, dtype: torch.dtype) -> None:
    """``d |diag(a) W diag(b)|`` scales as it must when powers of two move between its factors."""
    power = 50 if dtype == torch.float32 else 400
    base = torch.randn(5, 4, dtype=dtype), torch.rand(2, 4, dtype=dtype) + 0.5, torch.rand(2, 5, dtype=dtype) + 0.5
    options = {"certificate": certificate, "rtol": 1e-7, "max_iterations": 100}

    def gradients(*exponents: int) -> list[Tensor]:
        leaves = [(t * 2.0**e).requires_grad_() for t, e in zip(base, exponents, strict=True)]
        result = masked_spectral_norm(DenseMap(leaves[0]), leaves[1], leaves[2], **options)
        return list(torch.autograd.grad(result.upper.sum() + result.lower.sum(), leaves))

    plain = gradients(0, 0, 0)
    for moved in ((-power, 0, 0), (power, 0, 0), (-2 * power, power, power), (power, -power, -power), (0, -power, 0)):
        for mine, theirs, e in zip(gradients(*moved), plain, moved, strict=True):
            torch.testing.assert_close(mine, theirs * 2.0 ** (sum(moved) - e), rtol=1e-3, atol=0)


def test_gradients_of_a_composition_at_any_scale() -> None:
    scales = [1e-30] * 6 + [1e30] * 6
    weights = [torch.randn(3, 3).mul(scale).requires_grad_() for scale in scales]
    result = masked_spectral_norm(ComposedMap([DenseMap(w) for w in weights]), rtol=1e-6)
    for weight, gradient in zip(weights, torch.autograd.grad(result.upper.sum(), weights), strict=True):
        # the norm is homogeneous of degree one in every factor (Euler)
        inner = (weight.detach().double() * gradient.double()).sum()
        assert inner.item() == pytest.approx(result.upper.item(), rel=1e-3)


def test_powers_of_two_are_exact() -> None:
    k = torch.tensor([-1022, -1, 0, 1, 1023])
    assert power_of_two(k).tolist() == [2.0**e for e in k.tolist()]
    x = torch.tensor([1.0, -3.5, 5e-324, 0.0], dtype=torch.float64)
    assert exponents(x).tolist() == [1, 2, -1073, 0]
    assert times_power(x, torch.tensor(1074))[2].item() == 1.0
    assert times_power(times_power(x[:2], torch.tensor(900)), torch.tensor(-900)).tolist() == x[:2].tolist()
    for value, e in ((1.1, -1060), (1.1, 1023), (0.9, 1024), (3.0, -1076), (1.0, -1074), (1.3, 900)):
        for dtype in (torch.float32, torch.float64):
            tensor, exponent = torch.tensor([value], dtype=torch.float64), torch.tensor([e])
            with mpmath.workdps(60):
                true = mpmath.mpf(value) * mpmath.mpf(2) ** e
            assert outward(tensor, exponent, dtype, False).item() < true < outward(tensor, exponent, dtype, True).item()
