"""Constants far from the values they meet (masks, clips that never act), and ranges of smooth activations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.activations import kinked_functions as pl

METHODS = ("local-lip", "sdp-crown", "ibp")
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
FAR = [1e10, 1e16, 1e20, 1e30, 1e38, float("inf")]


class Apply(nn.Module):
    """A function as a model, with a weight for its precision."""

    def __init__(self, fn) -> None:
        super().__init__()
        self.fn, self.scale = fn, nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x):
        return self.fn(x * self.scale)


def bounds(net: nn.Module, x: torch.Tensor, eps: float, method: str, **settings):
    net = net.to(x.dtype).eval()
    bounded = BoundedModule(net, torch.zeros_like(x), bound_opts={"local_lip": LocalLipConfig(**settings)})
    norm = torch.inf if method == "ibp" else 2
    return bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps)),), method=method)


def constant(net: nn.Module, x: torch.Tensor, eps: float, method: str):
    bounded = BoundedModule(net.to(x.dtype).eval(), torch.zeros_like(x))
    return bounded.local_lipschitz(x=(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),), method=method)


def near(found, value: float, dtype: torch.dtype) -> None:
    lower, upper = (t[0, 0].item() for t in found)
    slack = 256 * torch.finfo(dtype).eps * abs(value)
    assert lower <= value <= upper and upper - lower <= 2 * slack, (lower, upper)


@TYPES
@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("method", METHODS)
def test_values_beside_far_constants(dtype, far, method):
    x = torch.tensor([[1.5, -0.25]], dtype=dtype)
    near(bounds(Apply(lambda z: torch.clamp(z, max=far)), x, 0.0, method), 1.5, dtype)
    near(bounds(Apply(lambda z: torch.clamp(z, min=-far, max=far)), x, 0.0, method), 1.5, dtype)
    if far < 1e38:
        top = torch.full((2,), far, dtype=dtype)
        near(bounds(Apply(lambda z: torch.maximum(z, -top)), x, 0.0, method), 1.5, dtype)
        near(bounds(Apply(lambda z: torch.minimum(z, top)), x, 0.0, method), 1.5, dtype)


@TYPES
@pytest.mark.parametrize("mask", [-1e4, -1e9, -1e20])
@pytest.mark.parametrize("method", METHODS)
def test_masked_maximum(dtype, mask, method):
    """``(x + mask).amax``: the usual masking; 1.79 is attained where 1.2 was said to be the maximum."""
    hidden = torch.tensor([0.0, mask], dtype=dtype)
    x = torch.tensor([[1.2, 5.0]], dtype=dtype)
    net = Apply(lambda z: (z + hidden).amax(1, keepdim=True))
    near(bounds(net, x, 0.0, method), x[0, 0].item(), dtype)
    lower, upper = bounds(net, x, 0.59, method)
    assert lower.item() <= 0.610001 and 1.7899999 <= upper.item() <= 1.791


@TYPES
@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("method", ["local-lip", "clarke-jacobian"])
def test_constants_beside_far_constants(dtype, far, method):
    x = torch.tensor([[1.5, 3.0]], dtype=dtype)
    upper = constant(Apply(lambda z: torch.relu(torch.clamp(z, max=far) - 1)), x, 0.1, method).upper.item()
    assert 1 <= upper <= 1.001


@TYPES
@pytest.mark.parametrize("far", [1.0, 1e10, 1e20, 1e30, float("inf")])
def test_pieces_are_exact(dtype, far):
    """Identity pieces give z itself, constant ones their constant, whatever the other end is."""
    z = torch.tensor([1e-30, 0.3, -0.3, 0.999, -1e-8], dtype=dtype)
    for record in (pl.clip(high=far), pl.clip(low=-far), pl.clip(-far, far), pl.clip(low=torch.tensor(-far))):
        assert torch.equal(record.value(z), z)
        anchor = z.unsqueeze(0)
        pieces = record.pieces(anchor, anchor - 1, anchor + 1, record.secant_range(anchor, anchor - 1, anchor + 1))
        assert all(torch.isfinite(p.offset[p.low <= p.high]).all() for p in pieces)
    assert torch.equal(pl.clip(0.25, far).value(z), z.clamp(0.25, far))
    assert torch.equal(pl.relu().value(z), z.relu()) and torch.equal(pl.absolute().value(z), z.abs())


@pytest.mark.parametrize("make", [nn.Tanh, nn.Sigmoid, nn.Softsign, nn.SiLU][:2])
@pytest.mark.parametrize("eps", [0.1, 1.0, 100.0, 1e6])
def test_bounded_activations_use_their_range(make, eps):
    """However large ε is, no bound is wider than interval arithmetic; at most the range of the last layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), make(), nn.Linear(5, 4), make(), nn.Linear(4, 2)).requires_grad_(False)
    x = torch.randn(2, 3, dtype=torch.float64)
    widest = net[-1].weight.abs().sum(1).double() * (2 if make is nn.Tanh else 1)
    for method in ("local-lip", "sdp-crown"):
        for kind in ("auto", "product", "composed"):
            lower, upper = bounds(net, x, eps, method, bound=kind)
            assert (upper - lower <= widest * (1 + 1e-9)).all()
    for point in (x, x + eps / 2, x - eps / 3):
        inside = point - x
        inside = x + inside * (eps / inside.norm(dim=1, keepdim=True)).clamp(max=1) * (1 - 1e-12)
        assert ((lower <= net(inside)) & (net(inside) <= upper)).all()
