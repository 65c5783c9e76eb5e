"""Regions hold what the user wrote: radii and boxes that float32 cannot hold are never made smaller."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.precision import next_above, next_below, rounded_up
from lirpa_lip.regions.region import Region
from lirpa_lip.regions.sizes import safe_norm

#: Rounded down by float32, and rounded up by it.
DOWN = [eps for eps in (k / 10 for k in range(1, 100)) if float(torch.tensor(eps)) < eps]


def hinge(at: float) -> nn.Module:
    """``relu(x − float32(at))``: alive on a region that reaches ``at`` itself."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).requires_grad_(False).eval()
    net[0].weight.data.fill_(1.0)
    net[0].bias.data = -torch.tensor([at])
    return net


METHODS = pytest.mark.parametrize("method", ["local-lip", "local-lip-crown", "clarke-jacobian", "recurjac", "naive"])
EPS = pytest.mark.parametrize("eps", [0.7, *DOWN[:3]])


@METHODS
@EPS
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_radius_that_float32_rounds_down(method, eps, precision):
    assert float(torch.tensor(eps)) < eps
    settings = {"local_lip": LocalLipConfig(precision=precision)}
    bounded = BoundedModule(hinge(eps), torch.zeros(1, 1), bound_opts=settings)
    ball = (BoundedTensor(torch.zeros(1, 1), PerturbationLpNorm(norm=2, eps=eps)),)
    assert bounded.local_lipschitz(x=ball, method=method).upper.item() >= 1
    if method.startswith("local-lip"):
        _, upper = bounded.compute_bounds(x=ball, method=method)
        assert upper.item() >= eps - float(torch.tensor(eps)) > 0


@METHODS
@pytest.mark.parametrize("kind", ["image_box", "x_U"])
def test_a_box_that_float32_rounds_down(method, kind):
    box = {"image_box": (-1.0, 0.7)} if kind == "image_box" else {}
    ends = {}
    if kind == "x_U":
        ends = {name: torch.tensor([[end]], dtype=torch.float64) for name, end in (("x_L", -1.0), ("x_U", 0.7))}
    bounded = BoundedModule(hinge(0.7), torch.zeros(1, 1), bound_opts={"local_lip": LocalLipConfig(**box)})
    ball = (BoundedTensor(torch.zeros(1, 1), PerturbationLpNorm(norm=2, eps=5.0, **ends)),)
    if method == "local-lip-crown" and kind == "x_U":
        pytest.skip("a float64 box beside a float32 input is no region of auto_LiRPA's methods")
    assert bounded.local_lipschitz(x=ball, method=method).upper.item() >= 1


@EPS
@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("norm", [2, float("inf")])
def test_radii_of_auto_lirpas_methods(eps, method, norm):
    """The upper bound of x over the ball is at least ε: in float32 that is the number above it."""
    identity = nn.Sequential(nn.Linear(1, 1, bias=False)).requires_grad_(False).eval()
    identity[0].weight.data.fill_(1.0)
    bounded = BoundedModule(identity, torch.zeros(1, 1))
    for radius in (eps, torch.tensor(eps, dtype=torch.float64), torch.tensor([eps], dtype=torch.float64)):
        ball = (BoundedTensor(torch.zeros(1, 1), PerturbationLpNorm(norm=norm, eps=radius)),)
        lower, upper = bounded.compute_bounds(x=ball, method=method)
        assert lower.item() <= -eps < eps <= upper.item()


def test_inputs_at_the_end_of_the_box_are_inside():
    """float32(0.3) exceeds 0.3, and is a pixel of an image in [-0.3, 0.3] all the same."""
    x = torch.full((1, 2), 0.3)
    assert float(x[0, 0]) > 0.3
    region = Region.make(x, 0.1, -0.3, 0.3, torch.float64)
    low, high = region.interval()
    assert (low <= x.double() - 0.1).all() and (high >= x.double()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intervals_are_rounded_outward(dtype):
    torch.manual_seed(0)
    x = torch.randn(50, 4, dtype=dtype)
    eps = torch.rand(50, dtype=torch.float64)
    low, high = Region.make(x, eps, dtype=dtype).interval()
    for i in range(50):
        for j in range(4):
            centre, radius = mpmath.mpf(x[i, j].item()), mpmath.mpf(eps[i].item())
            with mpmath.workdps(50):
                assert mpmath.mpf(low[i, j].item()) <= centre - radius
                assert mpmath.mpf(high[i, j].item()) >= centre + radius
    assert torch.equal(Region.make(x, 0.0).interval()[0], x)


def test_rounding_up():
    for value in (0.7, 0.1, -0.7, 1e-50, 3.0, torch.tensor([0.1, 0.7], dtype=torch.float64)):
        found = rounded_up(value, torch.float32)
        assert (found.double() >= torch.as_tensor(value, dtype=torch.float64)).all()
    one = torch.ones(1, requires_grad=True)
    assert next_above(one) > one > next_below(one)
    (gradient,) = torch.autograd.grad(next_above(one), one)
    assert gradient.item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_at_any_scale(dtype):
    """Scaling by a power of two scales the norm exactly, down to the least numbers; 0 has norm 0 and gradient 0."""
    torch.manual_seed(1)
    base = torch.randn(3, 4, 7, dtype=torch.float64).to(dtype)
    right = base.double().norm(dim=-1)
    most = 100 if dtype == torch.float32 else 1000
    for power in (-most, -most // 2, 0, most // 2, most):
        x = torch.ldexp(base, torch.tensor(power)).requires_grad_()
        norm = safe_norm(x)
        assert torch.allclose(torch.ldexp(norm, torch.tensor(-power)).double(), right, rtol=8 * torch.finfo(dtype).eps)
        (gradient,) = torch.autograd.grad(norm.sum(), x)
        assert torch.allclose(gradient, base / base.norm(dim=-1, keepdim=True), rtol=1e-4)
    zero = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(safe_norm(zero).sum(), zero)
    assert (gradient == 0).all() and (safe_norm(zero) == 0).all()
    mixed = torch.tensor([1e-30, 0.0, 1.0], dtype=torch.float64)
    found = safe_norm(mixed.to(dtype).unsqueeze(1).expand(3, 5)).double()
    assert torch.allclose(found, mixed * 5**0.5, rtol=1e-5, atol=0.0)
