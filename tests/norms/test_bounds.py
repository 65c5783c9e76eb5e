"""Every solver on every kind of map, against float64 singular values."""

from __future__ import annotations

import math

import pytest
import torch
from networks.maps import BATCH, BUILDERS, masks, singular_values

from lirpa_lip.errors import ConfigError
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.solve import SOLVERS

CERTIFIED = [name for name, solver in SOLVERS.items() if solver.certificate != "estimate"]
NO_ENTRIES = {"composed", "residual"}

# How far above sigma each method may lie, and what it leaves out.
TIGHT = {"polynomial": 1e-2, "cholesky": 1.1e-5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("method", CERTIFIED)
def test_bounds_hold_and_are_tight(method: str, name: str, dtype: torch.dtype) -> None:
    linear_map = BUILDERS[name](dtype)
    for dropped, scales in ((0.0, False), (0.5, False), (0.8, True)):
        mask_in, mask_out = masks(linear_map, dropped, scales)
        if method in ("gram", "schur") and name in NO_ENTRIES:
            with pytest.raises(ConfigError, match=r"probabilistic|entries"):
                masked_spectral_norm(linear_map, mask_in, mask_out, method=method)
            continue
        result = masked_spectral_norm(linear_map, mask_in, mask_out, method=method, delta=1e-9)
        sigma = singular_values(linear_map, mask_in, mask_out)
        # The oracle itself errs by some units of rounding.
        assert (result.upper.double() >= sigma * (1 - 1e-13)).all()
        assert (result.lower.double() <= sigma * (1 + 1e-13)).all()
        assert result.lower.dtype == result.upper.dtype == dtype
        assert result.upper[2] == 0 == result.lower[2]
        assert result.certificate == SOLVERS[method].certificate
        assert result.failure_probability == (1e-9 if method == "polynomial" else 0.0)
        if method in TIGHT:
            assert (result.upper.double() <= sigma * (1 + TIGHT[method]) + 1e-30).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_estimates_come_from_below_and_converge(name: str) -> None:
    linear_map = BUILDERS[name](torch.float64)
    mask_in, mask_out = masks(linear_map, 0.4, False)
    sigma = singular_values(linear_map, mask_in, mask_out)
    options = {"certificate": "estimate", "rtol": 1e-10, "max_iterations": 400}
    result = masked_spectral_norm(linear_map, mask_in, mask_out, **options)
    torch.testing.assert_close(result.upper, sigma, rtol=1e-8, atol=1e-12)
    assert result.upper is result.lower or torch.equal(result.upper, result.lower)
    assert result.certificate == "estimate" and math.isnan(result.failure_probability) and not result.certified
    power = masked_spectral_norm(linear_map, mask_in, mask_out, method="power", **options)
    assert (power.upper <= sigma * (1 + 1e-12)).all()
    assert (power.upper >= 0.8 * sigma).all()


@pytest.mark.parametrize("method", SOLVERS)
def test_too_few_iterations_are_seen(method: str) -> None:
    """One iteration must not pass as converged: an estimate falls short, a probabilistic bound opens."""
    linear_map = BUILDERS["conv"](torch.float64)
    mask_in, mask_out = masks(linear_map, 0.3, False)
    sigma = singular_values(linear_map, mask_in, mask_out)
    options = {"method": method, "certificate": SOLVERS[method].certificate, "max_iterations": 1}
    result = masked_spectral_norm(linear_map, mask_in, mask_out, **options)
    alive = sigma > 0
    alive[3] = False  # one entry: exact at once
    if method in ("power", "lanczos"):
        assert (result.upper[alive] < 0.97 * sigma[alive]).all()
    else:
        assert (result.upper >= sigma * (1 - 1e-13)).all()
    if method == "polynomial":
        assert (result.upper[alive] > 1e3 * sigma[alive]).all()


@pytest.mark.parametrize("name", ["wide", "conv", "strided", "composed"])
def test_vectors_show_the_value(name: str) -> None:
    """Left and right vectors are unit, lie on what is not masked, and reach the lower value."""
    linear_map = BUILDERS[name](torch.float64)
    mask_in, mask_out = masks(linear_map, 0.4, True)
    for certificate in ("deterministic", "probabilistic", "estimate"):
        options = {"certificate": certificate, "vectors": True, "rtol": 1e-9, "max_iterations": 300}
        result = masked_spectral_norm(linear_map, mask_in, mask_out, **options)
        left, right = result.left, result.right
        assert left.shape == (BATCH, *linear_map.out_shape) and right.shape == (BATCH, *linear_map.in_shape)
        image = linear_map.forward(right * mask_in) * mask_out
        values = (left * image).flatten(1).sum(1)
        torch.testing.assert_close(values, result.lower, rtol=1e-6, atol=1e-12)
        for vector, mask in ((left, mask_out), (right, mask_in)):
            norms = vector.flatten(1).norm(dim=1)
            torch.testing.assert_close(norms, (result.lower > 0).double())
            assert (vector[mask == 0] == 0).all()


def test_a_map_without_entries_that_is_too_large() -> None:
    from lirpa_lip.norms.linear_map import ComposedMap, DenseMap

    big = DenseMap(torch.ones(2100, 1)), DenseMap(torch.ones(1, 2100))
    with pytest.raises(ConfigError, match="probabilistic"):
        masked_spectral_norm(ComposedMap(big), certificate="deterministic")
    assert masked_spectral_norm(ComposedMap(big)).certificate == "probabilistic"


def test_auto_prefers_certainty_where_it_is_cheap() -> None:
    dense = BUILDERS["large"](torch.float32)
    assert masked_spectral_norm(dense).certificate == "deterministic"
    assert masked_spectral_norm(dense, work_limit=1e3).certificate == "probabilistic"
    # Entries are not at hand, but the smaller side is so small that they are asked for.
    assert masked_spectral_norm(BUILDERS["residual"](torch.float32)).certificate == "deterministic"


@pytest.mark.parametrize("method", CERTIFIED)
def test_zero_and_extreme_weights(method: str) -> None:
    from lirpa_lip.norms.linear_map import DenseMap

    weight = torch.randn(70, 110)
    for scale in (0.0, 1e-15, 1e15, 1e30):
        linear_map = DenseMap(weight * scale)
        sigma = singular_values(linear_map, None, None)
        result = masked_spectral_norm(linear_map, method=method, delta=1e-9)
        assert (result.upper.double() >= sigma * (1 - 1e-13)).all() and (result.lower.double() <= sigma).all()
        if method in TIGHT:
            assert (result.upper.double() <= sigma * (1 + TIGHT[method])).all()
