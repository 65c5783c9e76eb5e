"""Deterministic bounds: their pieces one by one, and their rounding against 200 digits."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from networks.maps import BUILDERS, masks, singular_values
from torch import Tensor

from lirpa_lip.norms import deterministic as deterministic_module
from lirpa_lip.norms import gram as gram_module
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.cholesky import (
    block_tridiagonal_definite,
    dense_top_eigenvalue,
    escalate,
    factor_margin,
    gram_margin,
)
from lirpa_lip.norms.conv_gram import blocks, factor_work, side, stencil
from lirpa_lip.norms.deterministic import convolution_bounds, dense_bounds, work
from lirpa_lip.norms.gram import _Iteration, convolution_bound, gram_bound, largest_gram_bound
from lirpa_lip.norms.linear_map import Conv1dMap, Conv2dMap, ConvMap, MaskedMap
from lirpa_lip.norms.loose import loose_bounds
from lirpa_lip.norms.problem import prepare
from lirpa_lip.norms.schur import schur_bound

CONVOLUTIONS = {
    "plain": lambda: Conv2dMap(torch.randn(4, 3, 3, 3), (3, 8, 7), padding=1),
    "stride": lambda: Conv2dMap(torch.randn(4, 2, 4, 4), (2, 9, 10), stride=2, padding=1),
    "no_padding": lambda: Conv2dMap(torch.randn(3, 2, 4, 4), (2, 9, 10), stride=2),
    "stride_beyond_kernel": lambda: Conv2dMap(torch.randn(3, 2, 2, 2), (2, 9, 10), stride=3),
    "everything": lambda: Conv2dMap(torch.randn(4, 2, 3, 2), (4, 9, 10), (2, 1), (1, 0), (1, 2), groups=2),
    "dilated_stride": lambda: Conv2dMap(torch.randn(3, 2, 3, 3), (2, 12, 11), stride=2, padding=2, dilation=3),
    "pointwise": lambda: Conv2dMap(torch.randn(5, 3, 1, 1), (3, 4, 6)),
    "depthwise": lambda: Conv2dMap(torch.randn(4, 1, 3, 3), (4, 6, 6), padding=1, groups=4),
    "large_kernel": lambda: Conv2dMap(torch.randn(2, 1, 7, 7), (1, 5, 6), padding=3),
    "one_axis": lambda: Conv1dMap(torch.randn(4, 3, 5), (3, 20), stride=2, padding=3),
}


def digits200(matrix: Tensor) -> mpmath.mpf:
    with mpmath.workdps(200):
        return max(mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False))


def hard_matrices() -> list[Tensor]:
    """Clusters, repeats, rank one, widely scaled rows: where the top value is easily missed by rounding."""
    found = [torch.eye(4), torch.ones(3, 5), torch.diag(torch.tensor([1.0, 1 - 1e-15, 1 - 3e-16, 0.5]))]
    for seed in range(40):
        torch.manual_seed(seed)
        found.append(torch.randn(2 + seed % 4, 3 + seed % 5))
        found.append(torch.randn(4, 1) @ torch.randn(1, 5))
        found.append(torch.diag(10.0 ** torch.randint(-6, 6, (4,)).double()) @ torch.randn(4, 4).double())
    return [matrix.double() for matrix in found]


@pytest.mark.parametrize("name", ["gram", "eigenvalues", "cholesky"])
def test_rounding_against_200_digits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bound falls below the value that 200 digits give; plain Gram iteration does."""
    if name == "cholesky":
        monkeypatch.setattr("lirpa_lip.norms.cholesky.EIGEN_ORDER", 0)
    for matrix in hard_matrices():
        exact = digits200(matrix)
        if name == "gram":
            upper = gram_bound(matrix[None], 30)[0]
        else:
            gram = matrix @ matrix.mT
            bound = dense_top_eigenvalue(gram[None], torch.tensor([float(exact) ** 2], dtype=torch.float64))[0]
            upper = (bound + gram_margin(matrix.shape[1], matrix.square().sum())).sqrt() * (1 + 1e-15)
        assert mpmath.mpf(upper.item()) >= exact
        assert upper.item() <= float(exact) * (1 + (1e-9 if name != "cholesky" else 1.1e-5))


def test_gram_iteration_without_margins_falls_below() -> None:
    """What the margins are for: the same products in float32, as published, fall short in many cases."""
    below = 0
    for seed in range(60):
        torch.manual_seed(seed)
        matrix = torch.randn(20, 30)
        exact = torch.linalg.svdvals(matrix.double())[0].item()
        gram, log_scale = matrix @ matrix.mT, 0.0
        for _ in range(10):
            norm = torch.linalg.matrix_norm(gram)
            gram, log_scale = gram / norm, 2 * (log_scale + norm.log().item())
            gram = gram @ gram
        plain = torch.linalg.matrix_norm(gram).log().item() + log_scale
        below += plain / 2**11 < torch.tensor(exact).double().log().item()
        assert gram_bound(matrix.double()[None], 10)[0].item() >= exact * (1 - 1e-15)
    assert below > 10


def test_gram_iterations_tighten() -> None:
    matrix = torch.randn(3, 25, 40, dtype=torch.float64)
    sigma = torch.linalg.svdvals(matrix)[:, 0]
    widths = [(gram_bound(matrix, k) / sigma).max().item() for k in (0, 2, 4, 8, 12)]
    assert widths == sorted(widths, reverse=True) and widths[0] > 1.3 and widths[-1] < 1 + 1e-4
    assert largest_gram_bound(matrix, 12).item() == pytest.approx(gram_bound(matrix, 12).max().item(), rel=1e-12)
    complex_matrix = torch.randn(2, 6, 5, dtype=torch.complex128)
    assert (gram_bound(complex_matrix, 10) >= torch.linalg.svdvals(complex_matrix)[:, 0] * (1 - 1e-14)).all()


@pytest.mark.parametrize("order", [3, 120])
def test_inertia_test_separates(order: int) -> None:
    """Just above the top eigenvalue the factorisation succeeds, just below it fails."""
    gram = torch.randn(4, order, order, dtype=torch.float64)
    gram = gram @ gram.mT
    top = torch.linalg.eigvalsh(gram)[:, -1]
    for factor, passes in ((1 + 1e-9, True), (1 - 1e-9, False)):
        for matrix, value in zip(gram, top, strict=True):
            half = order // 2
            diagonal = [matrix[:half, :half], matrix[half:, half:]]
            assert block_tridiagonal_definite(diagonal, [matrix[:half, half:]], value * factor) is passes
    assert factor_margin(order, order) < 1e-9


def test_inertia_test_of_dense_matrices_rejects_what_is_too_low() -> None:
    """From a guess that is too low by 3e-5 the first test point must be rejected, the second passes."""
    gram = torch.randn(3, 120, 120, dtype=torch.float64)
    gram = gram @ gram.mT
    top = torch.linalg.eigvalsh(gram)[:, -1]
    bound = dense_top_eigenvalue(gram, top * (1 - 3e-5))
    assert (bound >= top * (1 - 1e-13)).all() and (bound <= top * (1 + 1.1e-4)).all()


def test_margins_cover_the_rounding_they_are_for() -> None:
    """``fl(BBᵀ)`` against 50 digits, and Gram iteration against the eigenvalues of the very matrix it was given."""
    seen = 0.0
    for seed in range(25):
        torch.manual_seed(seed)
        matrix = torch.randn(5, 7, dtype=torch.float64)
        gram = matrix @ matrix.mT
        with mpmath.workdps(50):
            exact = mpmath.matrix(matrix.tolist()) * mpmath.matrix(matrix.mT.tolist())
            error = mpmath.matrix(gram.tolist()) - exact
            size = max(abs(value) for value in mpmath.eigsy(error + error.T, eigvals_only=True)) / 2
            top = max(
                mpmath.eigsy((mpmath.matrix(gram.tolist()) + mpmath.matrix(gram.mT.tolist())) / 2, eigvals_only=True)
            )
        margin = gram_margin(7, matrix.square().sum()).item()
        seen = max(seen, float(size) / margin)
        assert size <= margin
        assert mpmath.mpf(_Iteration(gram[None]).after(30).bound().item()) >= top
    assert seen > 1e-3


def test_escalation_takes_the_first_that_passes() -> None:
    limits = torch.tensor([1.00002, 1.5, 1.0, 1e9], dtype=torch.float64)
    bound = escalate(torch.ones(4, dtype=torch.float64), lambda index, t: t >= limits[index])
    assert bound.tolist() == [1 + 1e-4, 2.0, 1 + 1e-5, float("inf")]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_blocks_are_the_gram_matrix(name: str) -> None:
    """Assembled, the blocks have the eigenvalues of the Gram matrix written out, on either side and in every group."""
    conv = CONVOLUTIONS[name]().to(torch.float64)
    assert isinstance(conv, ConvMap)
    mask_in, mask_out = (
        torch.rand(shape).double() * (torch.rand(shape) > 0.4) for shape in (conv.in_shape, conv.out_shape)
    )
    matrix = MaskedMap(conv, mask_in[None], mask_out[None]).dense()[0]
    for outputs in (True, False):
        gram = matrix @ matrix.mT if outputs else matrix.mT @ matrix
        shape = conv.out_shape if outputs else conv.in_shape
        here, there = (mask_out, mask_in) if outputs else (mask_in, mask_out)
        for group in range(conv.groups):
            part = side(conv, group, outputs)
            channels, others = part.weight.shape[:2]
            mine = slice(group * channels, (group + 1) * channels)
            squares = there[group * others : (group + 1) * others].flatten(1).square()
            diagonal, coupling = blocks(part, stencil(part, squares), here[mine].flatten(1))
            sites = torch.arange(shape.numel()).reshape(shape)[mine].flatten()
            expected = torch.linalg.eigvalsh(gram[sites][:, sites])
            found = torch.linalg.eigvalsh(assembled(diagonal, coupling))
            torch.testing.assert_close(found, expected[-len(found) :])
            assert (expected[: len(expected) - len(found)].abs() < 1e-12).all()
            assert factor_work(part, 1.0) > factor_work(part, 0.3) > 0


def assembled(diagonal: list[Tensor], coupling: list[Tensor]) -> Tensor:
    whole = torch.block_diag(*diagonal)
    first = 0
    for i, upper in enumerate(coupling):
        second = first + len(diagonal[i])
        whole[first:second, second : second + upper.shape[1]] = upper
        whole[second : second + upper.shape[1], first:second] = upper.mT
        first = second
    return whole


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_bounds(name: str) -> None:
    """Block Cholesky on either side is exact; the symbol bounds the unmasked norm, and is not far above it."""
    conv = CONVOLUTIONS[name]()
    torch.manual_seed(3)
    mask_in, mask_out = ((torch.rand(3, *shape) > 0.4).float() for shape in (conv.in_shape, conv.out_shape))
    _, problem = prepare(conv, mask_in, mask_out)
    double, sigma = problem.to(torch.float64), singular_values(conv, mask_in, mask_out)
    for outputs in (True, False):
        upper = convolution_bounds(double, outputs, sigma)
        assert (upper >= sigma).all() and (upper <= sigma * (1 + 1e-5)).all()
    torch.testing.assert_close(dense_bounds(double, sigma, (1e-5,)), sigma, rtol=1e-5, atol=0)
    whole = singular_values(conv, None, None)[0]
    symbol = convolution_bound(conv)
    # The infinite grid's norm exceeds that of so small an image, above all where the kernel is larger than the image.
    assert whole <= symbol <= (2.0 if name == "large_kernel" else 1.6) * whole
    assert (loose_bounds(problem) >= sigma).all()


def test_symbol_bound_is_sharp_on_large_images() -> None:
    conv = Conv1dMap(torch.randn(3, 2, 4), (2, 400), stride=2, padding=1)
    ratio = convolution_bound(conv) / singular_values(conv, None, None)[0]
    assert 1 <= ratio <= 1.006


def test_symbol_bound_is_sharp_on_large_images_with_strides() -> None:
    conv = Conv2dMap(torch.randn(2, 2, 3, 4), (2, 41, 40), stride=(2, 3), padding=1)
    ratio = convolution_bound(conv) / singular_values(conv, None, None)[0]
    assert 1 <= ratio <= 1.02


def test_symbol_bound_covers_what_lies_between_the_grid_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid of four points a degree, its largest value alone would often fall short of the norm."""
    monkeypatch.setattr(gram_module, "POINTS_PER_DEGREE", 4)
    without = 0
    for seed in range(20):
        torch.manual_seed(seed)
        conv = Conv1dMap(torch.randn(2, 2, 4), (2, 150), padding=2)
        norm, bound = singular_values(conv, None, None)[0].item(), convolution_bound(conv).item()
        assert norm <= bound <= norm * 1.3
        without += bound * math.cos(math.pi / 4) ** 0.5 < norm
    assert without > 5


def test_schur_is_sharp_without_signs() -> None:
    """For a non-negative matrix |A| = A: the test's only loss is that of its power steps."""
    conv = Conv2dMap(torch.rand(4, 3, 3, 3), (3, 8, 7), padding=1)
    mask_in, mask_out = masks(conv, 0.4, True)
    _, problem = prepare(conv, mask_in, mask_out)
    sigma, upper = singular_values(conv, mask_in, mask_out), schur_bound(problem)
    assert (upper >= sigma).all() and (upper <= 1.02 * sigma + 1e-30).all()


def test_too_much_work_falls_back_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = BUILDERS["conv"](torch.float32)
    mask_in, mask_out = masks(conv, 0.4, False)
    monkeypatch.setattr(deterministic_module, "WORK_LIMIT", 1.0)
    result = masked_spectral_norm(conv, mask_in, mask_out, certificate="deterministic")
    sigma = singular_values(conv, mask_in, mask_out)
    assert (result.upper >= sigma).all() and result.upper.isfinite().all()
    assert (result.upper[[0, 4]] > 1.01 * sigma[[0, 4]]).all()


def test_a_poor_estimate_is_improved_before_the_bound_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deterministic_module, "GUESS_RTOL", 0.3)
    conv = BUILDERS["conv"](torch.float64)
    mask_in, mask_out = masks(conv, 0.3, False)
    sigma = singular_values(conv, mask_in, mask_out)
    poor = masked_spectral_norm(conv, mask_in, mask_out, certificate="estimate", rtol=0.3).upper
    assert (poor[[0, 1, 4]] < 0.98 * sigma[[0, 1, 4]]).any()
    upper = masked_spectral_norm(conv, mask_in, mask_out, certificate="deterministic").upper
    assert (upper <= 1.006 * sigma).all()


def test_a_bad_estimate_costs_tightness_not_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate that stopped far too early is rejected, and either improved or escalated from."""
    monkeypatch.setattr(deterministic_module, "GUESS_STEPS", 1)
    for name in ("large", "conv", "strided"):
        linear_map = BUILDERS[name](torch.float64)
        mask_in, mask_out = masks(linear_map, 0.4, False)
        result = masked_spectral_norm(linear_map, mask_in, mask_out, certificate="deterministic")
        sigma = singular_values(linear_map, mask_in, mask_out)
        assert (result.upper >= sigma * (1 - 1e-14)).all() and (result.upper <= 1.5 * sigma).all()


def test_work_falls_with_what_is_eliminated() -> None:
    dense, conv = BUILDERS["large"](torch.float32), BUILDERS["conv"](torch.float32)
    for linear_map in (dense, conv):
        costs = []
        for dropped in (0.0, 0.5, 0.9):
            mask_in, mask_out = (
                (torch.rand(4, *s) >= dropped).float() for s in (linear_map.in_shape, linear_map.out_shape)
            )
            costs.append(min(work(prepare(linear_map, mask_in, mask_out)[1]).values()))
        assert costs[0] > 1.5 * costs[1] and costs[1] > 1.5 * costs[2]
