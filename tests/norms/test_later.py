"""Certificates' singular vectors are found when a gradient is taken, not when one is recorded."""

from __future__ import annotations

import gc

import pytest
import torch
from networks.maps import BUILDERS, masks
from torch import Tensor, nn

from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.linear_map import ComposedMap, Conv2dMap, DenseMap, DiagonalMap, LinearMap

CERTIFIED = ("deterministic", "probabilistic")


class Counting(LinearMap):
    """A matrix that counts its applications to samples."""

    def __init__(self, weight: Tensor, count: list[int] | None = None) -> None:
        self.weight, self.count = weight, [0] if count is None else count
        self.out_shape, self.in_shape = weight.shape[:1], weight.shape[1:]

    dtype = property(lambda self: self.weight.dtype)
    device = property(lambda self: self.weight.device)

    def forward(self, x):
        self.count[0] += len(x)
        return x @ self.weight.mT

    def adjoint(self, y):
        self.count[0] += len(y)
        return y @ self.weight

    def rebuild(self, shared, per_sample):
        return Counting(shared(self.weight), self.count)


@pytest.mark.parametrize("certificate", CERTIFIED)
def test_nothing_is_applied_for_a_gradient_nobody_takes(certificate: str) -> None:
    weight, mask = torch.randn(80, 90), torch.rand(3, 90)
    counts, values = [], []
    for gradient in (False, True):
        linear_map = Counting(weight.clone().requires_grad_(gradient))
        result = masked_spectral_norm(linear_map, mask, certificate=certificate, seed=1)
        counts.append(linear_map.count[0])
        values.append(result)
        assert result.left is None and result.right is None
    assert counts[0] == counts[1]
    assert torch.equal(values[0].upper, values[1].upper) and torch.equal(values[0].lower, values[1].lower)
    # found when they are needed, for both values at once
    both = values[1].upper.sum() + values[1].lower.sum()
    (gradient,) = torch.autograd.grad(both, linear_map.weight, retain_graph=True)
    assert counts[1] < linear_map.count[0] <= 3 * counts[1] + 200
    assert torch.equal(torch.autograd.grad(both, linear_map.weight)[0], gradient)


def _reduced(dtype: torch.dtype) -> tuple[LinearMap, Tensor, Tensor]:
    """A dense layer of which so little is left that it is solved on small matrices."""
    return DenseMap(torch.randn(90, 110, dtype=dtype)), *((torch.rand(4, n) > 0.9).to(dtype) for n in (110, 90))


def _sparse(dtype: torch.dtype) -> tuple[LinearMap, Tensor, Tensor]:
    conv = Conv2dMap(torch.randn(8, 4, 3, 3, dtype=dtype), (4, 14, 14), padding=1)
    return conv, *((torch.rand(3, *shape) > 0.97).to(dtype) for shape in (conv.in_shape, conv.out_shape))


def _alike(dtype: torch.dtype) -> tuple[LinearMap, Tensor, Tensor]:
    return DenseMap(torch.randn(30, 40, dtype=dtype)), torch.ones(3, 40, dtype=dtype), torch.ones(3, 30, dtype=dtype)


def _scaled(dtype: torch.dtype) -> tuple[LinearMap, Tensor, Tensor]:
    power = 2.0**-100 if dtype == torch.float32 else 2.0**-500
    mask_in, mask_out = torch.rand(3, 40, dtype=dtype) + 0.1, torch.rand(3, 30, dtype=dtype) + 0.1
    factors = torch.tensor([[1.0], [1 / power], [1.0]], dtype=dtype)
    return DenseMap(torch.randn(30, 40, dtype=dtype) * power), mask_in * factors, mask_out


def _builder(name: str):
    def made(dtype: torch.dtype) -> tuple[LinearMap, Tensor, Tensor]:
        linear_map = BUILDERS[name](dtype)
        return linear_map, *masks(linear_map, 0.3, True)

    return made


CASES = {"reduced": _reduced, "sparse": _sparse, "alike": _alike, "scaled": _scaled}
CASES |= {
    name: _builder(name) for name in ("wide", "large", "conv", "grouped", "diagonal", "composed", "wrapped", "residual")
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("certificate", CERTIFIED)
@pytest.mark.parametrize("name", CASES)
def test_gradients_found_later_are_those_of_the_svd(name: str, certificate: str, dtype: torch.dtype) -> None:
    """Of the masks of every sample, dead ones too, on every way through the solvers."""
    linear_map, mask_in, mask_out = CASES[name](dtype)
    linear_map = linear_map.detach()
    options = {"certificate": certificate, "rtol": 1e-9, "max_iterations": 200}
    leaves = [mask.clone().requires_grad_() for mask in (mask_in, mask_out)]
    result = masked_spectral_norm(linear_map, *leaves, **options)
    found = torch.autograd.grad(result.lower.sum(), leaves)
    matrix = linear_map.to(torch.float64).dense()
    double = [mask.detach().double().requires_grad_() for mask in leaves]
    masked = matrix * double[1].flatten(1).unsqueeze(2) * double[0].flatten(1).unsqueeze(1)
    size = masked.detach().abs().amax((1, 2))
    size = torch.where(size > 0, size, 1)
    norms = torch.linalg.matrix_norm(masked / size.reshape(-1, 1, 1), 2) * size
    exact = torch.autograd.grad(norms.sum(), double)
    for mine, theirs, mask in zip(found, exact, leaves, strict=True):
        alive = (mask.detach() != 0) & (result.lower > 0).reshape(-1, *[1] * (mask.ndim - 1))
        scale = theirs.abs().flatten(1).amax(1).reshape(-1, *[1] * (mask.ndim - 1)).clamp(min=1e-300)
        error = torch.where(alive, (mine.double() - theirs) / scale, 0).abs().max().item()
        assert error < 5e-3, error
        assert mine.isfinite().all()


@pytest.mark.parametrize("certificate", CERTIFIED)
def test_a_recorded_gradient_keeps_hardly_more_than_its_tensors(certificate: str) -> None:
    """Bytes held by a result with a gradient, beside the map's tensors and masks: far less than one activation."""
    conv = Conv2dMap(torch.randn(8, 4, 3, 3, requires_grad=True), (4, 16, 16), padding=1)
    mask_in, mask_out = ((torch.rand(6, *shape) > 0.3).float() for shape in (conv.in_shape, conv.out_shape))

    def held() -> int:
        gc.collect()
        # plain ones only: other tests of the process may have left fakes, which have no storage
        tensors = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    before = held()
    result = masked_spectral_norm(conv, mask_in, mask_out, certificate=certificate, rtol=1e-2)
    assert held() - before < mask_out.nbytes / 8
    torch.autograd.grad(result.upper.sum(), conv.weight)
    assert held() - before < mask_out.nbytes / 8


def test_vectors_that_are_asked_for_are_there() -> None:
    weight = torch.randn(70, 80, requires_grad=True)
    scale = DiagonalMap(torch.rand(3, 80), (80,))
    for certificate in CERTIFIED:
        result = masked_spectral_norm(ComposedMap([DenseMap(weight), scale]), certificate=certificate, vectors=True)
        assert result.left is not None and result.right is not None
    result = masked_spectral_norm(DenseMap(weight), certificate="estimate")
    assert result.left is not None  # estimates are for training, whose gradients are taken
