"""Starts of certificates: from the system's entropy, whatever torch's seed is, and again from the result's seed."""

from __future__ import annotations

import pytest
import torch
from networks.maps import BUILDERS, masks
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.draw import fresh_seed, next_seed, normal
from lirpa_lip.norms.linear_map import DenseMap


def _made_for(start: Tensor) -> Tensor:
    """A matrix of norm 1.5, one of 1 on everything that the start sees."""
    basis = torch.linalg.qr(torch.cat([start.reshape(-1, 1), torch.randn(len(start), len(start) - 1).double()], 1))[0]
    values = torch.ones(len(start), dtype=torch.float64)
    values[-1] = 1.5
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("size", [20, 70])
def test_no_global_seed_is_known_to_a_certificate(size: int) -> None:
    """The top vector is orthogonal to the start that torch's generator would give: it is found all the same."""
    for seed in range(3):
        torch.manual_seed(seed)
        weight = _made_for(torch.randn(1, size, dtype=torch.float64)[0])
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        for certificate in ("probabilistic", "deterministic"):
            result = masked_spectral_norm(DenseMap(weight), certificate=certificate, delta=1e-6)
            assert result.upper.item() >= 1.5 * (1 - 1e-12), certificate
        assert torch.equal(torch.random.get_rng_state(), before)  # nor is anything drawn from it


def test_a_start_one_knows_can_be_used_against_it() -> None:
    """Why: with a seed given back, whose start is known, a matrix can be made that gets a number below its norm."""
    start = normal((1, 30), torch.float64, torch.device("cpu"), 7)[0]
    assert masked_spectral_norm(DenseMap(_made_for(start)), method="polynomial", seed=7).upper.item() < 1.01


@pytest.mark.parametrize("method", ["polynomial", "cholesky", "lanczos"])
@pytest.mark.parametrize("name", ["large", "conv", "composed", "wrapped"])
def test_the_seed_repeats_the_run(name: str, method: str) -> None:
    linear_map = BUILDERS[name](torch.float32)
    arguments = (linear_map, *masks(linear_map, 0.6, True))
    options = {"method": method, "certificate": "estimate" if method == "lanczos" else "auto", "max_iterations": 7}
    first = masked_spectral_norm(*arguments, seed=fresh_seed(), **options)
    again = masked_spectral_norm(*arguments, seed=first.seed, **options)
    assert torch.equal(first.upper, again.upper) and torch.equal(first.lower, again.lower)
    if method == "polynomial":
        other = masked_spectral_norm(*arguments, **options)
        assert other.seed is not None and other.seed != first.seed
        assert not torch.equal(other.upper, first.upper)
        same = masked_spectral_norm(*arguments, seed=other.seed, **options)
        assert torch.equal(same.upper, other.upper)
        drawn = masked_spectral_norm(*arguments, generator=torch.Generator().manual_seed(3), **options)
        same = masked_spectral_norm(*arguments, seed=drawn.seed, **options)
        assert torch.equal(same.upper, drawn.upper)


def test_a_deterministic_bound_is_the_same_every_time() -> None:
    linear_map = DenseMap(torch.randn(70, 90))
    first, second = (masked_spectral_norm(linear_map, certificate="deterministic") for _ in range(2))
    assert torch.equal(first.upper, second.upper) and torch.equal(first.lower, second.lower)


def test_seeds() -> None:
    seeds = [fresh_seed() for _ in range(100)]
    assert len(set(seeds)) == 100 and all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**58
    derived = {next_seed(5, index) for index in range(100)} | {next_seed(6, index) for index in range(100)}
    assert len(derived) == 200 and all(0 <= seed < 2**63 for seed in derived)
    # all bits of a seed count
    cpu = torch.device("cpu")
    assert not torch.equal(normal((4,), torch.float64, cpu, 1), normal((4,), torch.float64, cpu, 1 + 2**40))
    for bad in (-1, 2**63):
        with pytest.raises(ConfigError, match="seed"):
            masked_spectral_norm(DenseMap(torch.ones(2, 2)), seed=bad)


@pytest.mark.cuda
def test_seeds_on_cuda() -> None:
    linear_map = DenseMap(torch.randn(70, 90, device="cuda"))
    first = masked_spectral_norm(linear_map, certificate="probabilistic")
    again = masked_spectral_norm(linear_map, certificate="probabilistic", seed=first.seed)
    torch.testing.assert_close(first.upper, again.upper, rtol=1e-6, atol=0)
    generator = torch.Generator("cuda").manual_seed(1)
    assert masked_spectral_norm(linear_map, certificate="probabilistic", generator=generator).seed is not None
