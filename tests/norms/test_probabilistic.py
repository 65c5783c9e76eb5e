"""The probabilistic bound fails as rarely as it says, whatever rounding does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks.maps import BUILDERS, masks, singular_values
from torch import Tensor

from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.lanczos import Recurrence, random_start
from lirpa_lip.norms.linear_map import DenseMap
from lirpa_lip.norms.probabilistic import (
    ROUNDING,
    a_priori_factor,
    log_growth,
    polynomial_bound,
    probabilistic,
    start_component,
)
from lirpa_lip.norms.problem import Problem, prepare
from lirpa_lip.norms.result import Want

DRAWS = 6000

SPECTRA = {
    "one_large": torch.cat([torch.full((39,), 0.5), torch.ones(1)]),
    "geometric": 0.9 ** torch.arange(40),
    "even": torch.linspace(0.05, 1, 40),
    "repeated": torch.cat([torch.linspace(0, 0.6, 36), torch.ones(4)]),
    "two_coordinates": torch.tensor([0.3, 1.0]),
}


def draws(spectrum: Tensor, delta: float, steps: int) -> Tensor:
    """Bounds from independent starts, ``(DRAWS,)`` (equal samples of one `masked_spectral_norm` share theirs)."""
    ones = torch.ones(DRAWS, len(spectrum), dtype=torch.float64)
    _, problem = prepare(DenseMap(torch.diag(spectrum.sqrt())), ones, None)
    return probabilistic(problem, delta, 1e-12, steps, None, want=Want.NOTHING).upper


@pytest.mark.parametrize("delta", [0.1, 0.3])
@pytest.mark.parametrize("name", SPECTRA)
def test_failure_rate_over_many_draws(name: str, delta: float) -> None:
    """Over 6000 fresh starts no more fail than delta allows, at any number of steps."""
    spectrum = SPECTRA[name].double()
    allowed = delta + 4 * math.sqrt(delta * (1 - delta) / DRAWS)
    for steps in (1, 2, 4, 8, 14):
        upper = draws(spectrum, delta, steps)
        rate = (upper < spectrum.max().sqrt() * (1 - 1e-12)).double().mean().item()
        assert rate <= allowed, f"{steps} steps"


def test_the_failure_rate_is_not_vacuous() -> None:
    """After one step on a spectrum made for it the rate comes close to delta, so that a wrong constant would show."""
    upper = draws(SPECTRA["one_large"].double(), 0.1, 1)
    assert (upper < 1 - 1e-12).double().mean() > 0.07


def test_start_component_is_what_the_sphere_gives() -> None:
    """Against the exact distribution of one coordinate, by quadrature of ``(1 - x^2)^((n-3)/2)``."""
    for n in (3, 4, 10, 1000, 25088):
        for delta in (1e-6, 0.1, 0.5):
            gamma = start_component(delta, torch.tensor([n])).item()
            x = np.linspace(0, min(1.0, gamma), 200_001)
            log_density = 0.5 * (n - 3) * np.log1p(-np.minimum(x * x, 1 - 1e-300))
            log_constant = math.lgamma(n / 2) - math.lgamma((n - 1) / 2) - 0.5 * math.log(math.pi)
            probability = 2 * np.trapezoid(np.exp(log_density + log_constant), x)
            assert 0.5 * delta < probability <= delta * (1 + 1e-9)
    assert start_component(0.1, torch.tensor([1])).item() == 1.0
    two = start_component(0.1, torch.tensor([2])).item()
    assert 2 / math.pi * math.asin(two) <= 0.1


@pytest.mark.parametrize("name", ["wide", "large", "conv", "composed"])
def test_a_posteriori_is_below_a_priori(name: str) -> None:
    """The bound that is returned is smaller than Kuczynski and Wozniakowski's, at every number of steps."""
    linear_map = BUILDERS[name](torch.float64)
    _, problem = prepare(linear_map, *masks(linear_map, 0.2, False))
    problem = problem.select(torch.tensor([0, 1, 4]))
    gamma = start_component(1e-6, problem.active().sum(1))
    state = Recurrence(problem, random_start(problem, None), False)
    for steps in range(1, 15):
        state.advance()
        ritz = state.eigen()[0][:, -1]
        ours = polynomial_bound(state.alpha, state.beta, ritz, gamma)
        assert (ours <= ritz * a_priori_factor(gamma, steps)).all()
        for enough in (0.5, 1e-2, 1e-9):
            # looked for less closely the root is no smaller, and a root that is not near is found all the same
            quick = polynomial_bound(state.alpha, state.beta, ritz, gamma, enough)
            assert (quick >= ours * (1 - 1e-9)).all()
            assert (quick <= torch.maximum(ours * (1 + 1e-9), ritz * (1 + enough))).all()


def test_growth_is_that_of_the_polynomial() -> None:
    """Against the characteristic polynomial of T, with and without the rounding term."""
    alpha, beta = torch.rand(1, 6, dtype=torch.float64) + 1, torch.rand(1, 6, dtype=torch.float64) + 0.1
    t = torch.tensor([[4.0, 9.0]], dtype=torch.float64)
    expected = []
    for point in t[0]:
        best = -math.inf
        for k in range(1, 7):
            matrix = torch.diag(alpha[0, :k]) + torch.diag(beta[0, : k - 1], 1) + torch.diag(beta[0, : k - 1], -1)
            p = torch.linalg.det(point * torch.eye(k, dtype=torch.float64) - matrix) / beta[0, :k].prod()
            best = max(best, math.log(0.01 * p))
        expected.append(best)
    gamma = torch.tensor([0.01], dtype=torch.float64)
    exact = log_growth(alpha, beta, t, gamma, rounding=0.0)
    torch.testing.assert_close(exact, torch.tensor([expected], dtype=torch.float64))
    assert (log_growth(alpha, beta, t, gamma, rounding=1e-4) < exact).all()
    assert log_growth(alpha, beta, t, gamma, rounding=1.0).eq(-math.inf).all()
    assert log_growth(alpha, beta, torch.tensor([[1.0]], dtype=torch.float64), gamma).item() == -math.inf


@pytest.mark.parametrize("name", ["large", "conv", "strided", "composed"])
def test_rounding_of_one_application_is_far_below_what_is_allowed(name: str) -> None:
    """G v in float64 against 80-bit arithmetic on the matrix written out."""
    linear_map = BUILDERS[name](torch.float64)
    _, problem = prepare(linear_map, *masks(linear_map, 0.2, True))
    problem = problem.select(torch.tensor([4]))
    vector = random_start(problem, None)
    vector /= vector.norm()
    matrix = Problem(problem.map, 1).map.dense().reshape(linear_map.out_numel, linear_map.in_numel)
    scaled = np.asarray(matrix, dtype=np.longdouble) * np.asarray(problem.mask_in.reshape(1, -1), dtype=np.longdouble)
    scaled = scaled * np.asarray(problem.mask_out.reshape(-1, 1), dtype=np.longdouble)
    small = scaled if problem.on_input else scaled.T
    reference = small.T @ (small @ np.asarray(vector[0], dtype=np.longdouble))
    error = np.linalg.norm((np.asarray(problem.gram(vector)[0]) - reference).astype(float))
    norm = torch.linalg.svdvals(torch.tensor(scaled.astype(float)))[0].item() ** 2
    assert error < ROUNDING / 50 * norm


class _Noisy(DenseMap):
    """A map whose results carry the relative error that float32 would leave."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float().double()


def test_float32_rounding_would_decide_the_component() -> None:
    """Why certificates run in float64: a start without any component along z still finds it by float32 rounding.

    So the component that the run saw came from rounding, and no statement about the random start covers it.
    """
    torch.manual_seed(1)
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
    values = torch.cat([torch.linspace(0.1, 0.9, 59, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
    weight = basis @ torch.diag(values) @ basis.T
    start = torch.randn(1, 60, dtype=torch.float64)
    start -= (start @ basis[:, -1:]) * basis[:, -1]
    seen = {}
    for kind in (DenseMap, _Noisy):
        state = Recurrence(Problem(kind(weight), 1), start, False)
        for _ in range(26):
            state.advance()
        seen[kind] = state.eigen()[0][0, -1].item()
    assert seen[DenseMap] <= 0.9**2 + 1e-6
    assert seen[_Noisy] > 0.9**2 + 0.05


def test_certificates_ignore_the_start_and_run_in_float64() -> None:
    """A start chosen against the bound (the second singular vector) does no harm, and neither does a float32 map."""
    weight = torch.diag(torch.tensor([1.0, 0.9, 0.2, 0.1]))
    poisoned = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    result = masked_spectral_norm(DenseMap(weight), method="polynomial", start=poisoned, delta=1e-6)
    assert 1.0 <= result.upper.item() <= 1.002
    _, problem = prepare(DenseMap(weight), None, None)
    assert probabilistic(problem, 1e-6, 1e-3, 50, None, want=Want.NOTHING).upper.dtype == torch.float64


def test_starts_are_fresh_but_follow_a_generator() -> None:
    linear_map = BUILDERS["large"](torch.float64)
    options = {"method": "polynomial", "max_iterations": 9}

    def draw(seed: int) -> Tensor:
        return masked_spectral_norm(linear_map, generator=torch.Generator().manual_seed(seed), **options).upper

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    first, second = (masked_spectral_norm(linear_map, **options).upper for _ in range(2))
    assert not torch.equal(first, second)


def test_more_steps_are_tighter() -> None:
    """More steps, tighter; 100 steps come within two per cent of the value at delta = 1e-6."""
    linear_map = BUILDERS["conv"](torch.float64)
    mask_in, mask_out = masks(linear_map, 0.3, False)
    sigma = singular_values(linear_map, mask_in, mask_out)
    alive = sigma > 0
    widths = []
    for steps in (10, 20, 40, 100):
        options = {"method": "polynomial", "rtol": 1e-9, "max_iterations": steps}
        upper = masked_spectral_norm(linear_map, mask_in, mask_out, **options).upper
        widths.append((upper[alive] / sigma[alive]).max().item())
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1.02
