"""The public call: what it accepts, what it refuses, and what it says when it does."""

from __future__ import annotations

import pytest
import torch
from networks.maps import BUILDERS, masks, singular_values

from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError, UnknownMethodError
from lirpa_lip.norms import NormResult, SharedStart, masked_spectral_norm
from lirpa_lip.norms.linear_map import ComposedMap, Conv2dMap, DenseMap, DiagonalMap, LinearMap, MaskedMap, ReshapeMap
from lirpa_lip.norms.problem import prepare
from lirpa_lip.norms.reduce import reduction_pays
from lirpa_lip.norms.simplify import simplify

DENSE = DenseMap(torch.randn(4, 6))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ShapeError, "DenseMap", lambda: masked_spectral_norm(torch.zeros(3, 4))),
        (ShapeError, "mask_in has shape", lambda: masked_spectral_norm(DENSE, torch.ones(2, 5))),
        (ShapeError, "mask_out has shape", lambda: masked_spectral_norm(DENSE, None, torch.ones(4))),
        (ShapeError, "batch sizes", lambda: masked_spectral_norm(DENSE, torch.ones(2, 6), torch.ones(3, 4))),
        (ShapeError, "not be 0", lambda: masked_spectral_norm(DENSE, torch.ones(0, 6))),
        (
            ShapeError,
            "batch sizes",
            lambda: masked_spectral_norm(DiagonalMap(torch.ones(2, 6), (6,)), torch.ones(3, 6)),
        ),
        (ShapeError, "empty", lambda: masked_spectral_norm(ReshapeMap((0,), (0, 3)))),
        (NonFiniteError, "weights", lambda: masked_spectral_norm(DenseMap(torch.full((2, 2), float("nan"))))),
        (NonFiniteError, "mask_in", lambda: masked_spectral_norm(DENSE, torch.full((1, 6), float("inf")))),
        (NonFiniteError, "mask_out", lambda: masked_spectral_norm(DENSE, None, torch.full((1, 4), float("nan")))),
        (
            NonFiniteError,
            "dtype",
            lambda: masked_spectral_norm(DenseMap(torch.full((9, 9), 3e38)), certificate="estimate"),
        ),
        (ConfigError, "negative", lambda: masked_spectral_norm(DENSE, -torch.ones(1, 6))),
        (ConfigError, "delta", lambda: masked_spectral_norm(DENSE, delta=0.0)),
        (ConfigError, "delta", lambda: masked_spectral_norm(DENSE, delta=1.0)),
        (ConfigError, "delta", lambda: masked_spectral_norm(DENSE, delta=float("nan"))),
        (ConfigError, "rtol", lambda: masked_spectral_norm(DENSE, rtol=0.0)),
        (ConfigError, "max_iterations", lambda: masked_spectral_norm(DENSE, max_iterations=0)),
        (UnknownMethodError, "choose one of", lambda: masked_spectral_norm(DENSE, certificate="sure")),
        (UnknownMethodError, "lanczos", lambda: masked_spectral_norm(DENSE, method="svd")),
        (ConfigError, "estimate", lambda: masked_spectral_norm(DENSE, method="power")),
        (ConfigError, "estimate", lambda: masked_spectral_norm(DENSE, method="lanczos", certificate="deterministic")),
        (ConfigError, "deterministic", lambda: masked_spectral_norm(DENSE, method="schur", certificate="estimate")),
    ],
)
def test_bad_input_is_refused_with_a_remedy(error: type[Exception], match: str, call) -> None:
    with pytest.raises(error, match=match):
        call()


def test_an_estimate_must_be_asked_for_by_name() -> None:
    for name in ("auto", "deterministic", "probabilistic"):
        assert masked_spectral_norm(DENSE, certificate=name).certified
    assert not masked_spectral_norm(DENSE, certificate="estimate").certified


def test_batch_size_comes_from_masks_or_map() -> None:
    assert masked_spectral_norm(DENSE).upper.shape == (1,)
    assert masked_spectral_norm(DENSE, torch.ones(3, 6)).upper.shape == (3,)
    assert masked_spectral_norm(DENSE, torch.ones(1, 6), torch.ones(3, 4)).upper.shape == (3,)
    assert masked_spectral_norm(DiagonalMap(torch.ones(2, 6), (6,))).upper.shape == (2,)
    assert masked_spectral_norm(DiagonalMap(torch.ones(2, 6), (6,)), torch.ones(2, 6)).upper.shape == (2,)
    assert masked_spectral_norm(DENSE, (torch.rand(3, 6) > 0.5)).upper.dtype == torch.float32


def test_one_dead_sample_does_not_touch_the_others() -> None:
    linear_map = BUILDERS["conv"](torch.float64)
    mask_in, mask_out = masks(linear_map, 0.3, False)
    for certificate in ("deterministic", "probabilistic", "estimate"):
        result = masked_spectral_norm(linear_map, mask_in, mask_out, certificate=certificate, vectors=True)
        assert isinstance(result, NormResult)
        assert result.upper[2] == 0 and (result.upper[[0, 1, 3, 4]] > 0).all()
        assert (result.left[2] == 0).all() and (result.right[2] == 0).all()
        nothing = masked_spectral_norm(linear_map, mask_in * 0, mask_out, certificate=certificate, delta=0.01)
        assert (nothing.upper == 0).all() and nothing.certificate == certificate


def test_samples_do_not_depend_on_their_batch() -> None:
    """Samples leave the batch as they converge: each must end where it ends alone."""
    linear_map = BUILDERS["strided"](torch.float64)
    mask_in, mask_out = ((torch.rand(9, *s) > torch.linspace(0, 0.8, 9).reshape(-1, 1, 1, 1)).double()
                         for s in (linear_map.in_shape, linear_map.out_shape))  # fmt: skip
    together = masked_spectral_norm(linear_map, mask_in, mask_out, certificate="estimate", rtol=1e-10, vectors=True)
    torch.testing.assert_close(together.upper, singular_values(linear_map, mask_in, mask_out), rtol=1e-8, atol=0)
    for b in range(9):
        alone = masked_spectral_norm(
            linear_map, mask_in[b : b + 1], mask_out[b : b + 1], certificate="estimate", rtol=1e-10
        )
        torch.testing.assert_close(alone.upper[0], together.upper[b], rtol=1e-8, atol=0)


REMAINDERS = [
    DenseMap(torch.randn(200, 300, dtype=torch.float64)),
    Conv2dMap(torch.randn(8, 8, 5, 5, dtype=torch.float64), (8, 12, 12), padding=2),
]


@pytest.mark.parametrize("linear_map", REMAINDERS, ids=["dense", "convolution"])
def test_small_remainders_are_solved_on_small_matrices(linear_map: LinearMap) -> None:
    """Where little is left, iterations run on dense matrices: same values, and vectors in their places."""
    mask_in, mask_out = ((torch.rand(6, *s) > 0.96).double() for s in (linear_map.in_shape, linear_map.out_shape))
    _, problem = prepare(linear_map, mask_in, mask_out)
    assert reduction_pays(problem)
    sigma = singular_values(linear_map, mask_in, mask_out)
    for certificate in ("estimate", "probabilistic"):
        options = {"certificate": certificate, "rtol": 1e-9, "max_iterations": 200, "vectors": True}
        result = masked_spectral_norm(linear_map, mask_in, mask_out, **options)
        torch.testing.assert_close(result.upper, sigma, rtol=1e-3, atol=0)
        image = linear_map.forward(result.right * mask_in) * mask_out
        torch.testing.assert_close((image * result.left).flatten(1).sum(1), sigma, rtol=1e-8, atol=0)


def test_maps_per_sample_are_written_out_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    linear_map = BUILDERS["composed"](torch.float64)
    whole = masked_spectral_norm(linear_map, certificate="deterministic").upper
    monkeypatch.setattr("lirpa_lip.norms.deterministic.GROUP_ELEMENTS", 2 * linear_map.in_numel * linear_map.out_numel)
    torch.testing.assert_close(masked_spectral_norm(linear_map, certificate="deterministic").upper, whole)


def test_a_masked_map_is_taken_apart() -> None:
    mask_in, mask_out = (torch.rand(3, 6) > 0.5).float(), (torch.rand(3, 4) > 0.5).float()
    options = {"certificate": "deterministic"}
    inside = masked_spectral_norm(MaskedMap(DENSE, mask_in, mask_out), **options).upper
    torch.testing.assert_close(
        inside, masked_spectral_norm(DENSE, mask_in, mask_out, **options).upper, rtol=1e-5, atol=0
    )
    again = masked_spectral_norm(MaskedMap(DENSE, mask_in, mask_out), mask_in, mask_out, **options).upper
    torch.testing.assert_close(again, inside, rtol=1e-5, atol=0)


def test_compositions_are_simplified_to_their_core() -> None:
    conv = Conv2dMap(torch.randn(3, 2, 3, 3), (2, 5, 5), padding=1)
    scales = DiagonalMap(torch.randn(2, 5, 5), (2, 5, 5))
    chain = ComposedMap([ReshapeMap((3, 5, 5), (75,)), MaskedMap(conv, None, torch.rand(4, 3, 5, 5)), scales])
    _, problem = prepare(chain, None, torch.ones(4, 75))
    core = simplify(problem)
    assert isinstance(core.map, Conv2dMap)
    assert core.mask_in.shape == (4, 2, 5, 5) and core.mask_out.shape == (4, 3, 5, 5)
    assert masked_spectral_norm(chain).certificate == "deterministic"


class _Mine(LinearMap):
    """The least a map of one's own needs; its values overflow to NaN on demand."""

    def __init__(self, weight: torch.Tensor, broken: bool = False) -> None:
        self.weight, self.broken = weight, broken
        self.out_shape, self.in_shape = weight.shape[:1], weight.shape[1:]

    dtype = property(lambda self: self.weight.dtype)
    device = property(lambda self: self.weight.device)

    def forward(self, x):
        return x @ self.weight.mT * (float("nan") if self.broken else 1.0)

    def adjoint(self, y):
        return y @ self.weight

    def rebuild(self, shared, per_sample):
        return _Mine(shared(self.weight), self.broken)


def test_maps_of_ones_own() -> None:
    weight = torch.randn(80, 90, requires_grad=True)
    for certificate in ("deterministic", "probabilistic", "estimate"):
        result = masked_spectral_norm(_Mine(weight), certificate=certificate, rtol=1e-6)
        torch.testing.assert_close(result.upper[0], torch.linalg.svdvals(weight)[0], rtol=1e-4, atol=0)
        assert torch.autograd.grad(result.upper.sum(), weight)[0].isfinite().all()
    for certificate in ("probabilistic", "estimate"):
        with pytest.raises(NonFiniteError):
            masked_spectral_norm(_Mine(weight, broken=True), certificate=certificate)


def test_start_speeds_an_estimate_up() -> None:
    """From the answer itself one step is enough; a start without anything live is replaced."""
    linear_map = BUILDERS["large"](torch.float64)
    sigma = singular_values(linear_map, None, None)
    exact = masked_spectral_norm(linear_map, certificate="estimate", rtol=1e-12, max_iterations=200, vectors=True)
    options = {"certificate": "estimate", "max_iterations": 1}
    warm = masked_spectral_norm(linear_map, start=exact.right, **options)
    cold = masked_spectral_norm(linear_map, **options)
    assert warm.upper >= 0.999999 * sigma > cold.upper
    assert masked_spectral_norm(linear_map, start=torch.zeros(1, linear_map.in_numel), **options).upper > 0


@pytest.mark.parametrize("certificate", ["deterministic", "probabilistic", "estimate"])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_scales_of_zero_eliminate_as_masks_do(certificate: str, size: int | None) -> None:
    """Of all samples, or, with scales of their own, of some."""
    matrix = DenseMap(torch.randn(3, 4))
    zero = ComposedMap([matrix, DiagonalMap(torch.zeros(4), (4,))])
    mask = None if size is None else torch.rand(size, 4) + 0.5
    result = masked_spectral_norm(zero, mask_in=mask, certificate=certificate, vectors=True)
    assert result.upper.tolist() == result.lower.tolist() == [0.0] * (size or 1)
    assert not result.left.any() and not result.right.any()
    half = ComposedMap([DiagonalMap(torch.tensor([1.0, 0.0, 0.0]), (3,)), matrix])
    rows = torch.tensor([[0.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    found = masked_spectral_norm(half, mask_out=rows, certificate=certificate).upper
    assert found[0] == 0 and found[1] == pytest.approx(2 * float(matrix.weight[0].norm()), rel=1e-2)


def test_public_names() -> None:
    import lirpa_lip

    assert lirpa_lip.masked_spectral_norm is masked_spectral_norm
    assert lirpa_lip.NormResult is NormResult
    assert len(SharedStart()) == 0
