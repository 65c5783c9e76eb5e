"""Bounds against exact arithmetic: fractions for values, mpmath for norms, in float64 and float32."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm

mpmath.mp.dps = 60
_SEEDS = 10


def wrap(net: nn.Module, x: torch.Tensor, **settings) -> BoundedModule:
    net = net.to(x.dtype).eval().requires_grad_(False)
    return BoundedModule(net, torch.zeros_like(x), bound_opts={"local_lip": LocalLipConfig(**settings)})


def ball(x: torch.Tensor, eps, **box) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps, **box)),)


def exact(net: nn.Sequential, x: torch.Tensor) -> list[Fraction]:
    """Value of a sequential network of Linear and ReLU at one point, exactly."""
    value = [Fraction(v) for v in x.tolist()]
    for layer in net:
        if isinstance(layer, nn.Linear):
            bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
            value = [
                sum((Fraction(w) * v for w, v in zip(row, value)), Fraction(b))
                for row, b in zip(layer.weight.tolist(), bias)
            ]
        else:
            value = [max(v, Fraction(0)) for v in value]
    return value


def norm_of(rows: list[list[Fraction]]) -> mpmath.mpf:
    """Euclidean norm of one row, or of a single entry."""
    return mpmath.sqrt(mpmath.fsum(mpmath.mpf(v.numerator) ** 2 / mpmath.mpf(v.denominator) ** 2 for v in rows[0]))


def random_net(seed: int, widths: list[int], relu: bool, dtype: torch.dtype, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        parts.append(nn.Linear(a, b, dtype=dtype))
        parts[-1].weight.data.mul_(scale)
        if relu and i + 2 < len(widths):
            parts.append(nn.ReLU())
    return nn.Sequential(*parts).requires_grad_(False)


METHODS = ("local-lip", "sdp-crown")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("precision", ["auto", "float32"])
@pytest.mark.parametrize("relu", [False, True])
def test_values_at_a_point(dtype, precision, relu):
    """At ε = 0 the value, as a fraction, lies between the bounds; today's were crossed in half of the cases."""
    for seed in range(_SEEDS):
        net = random_net(seed, [1 + seed % 7, 5, 3, 2], relu, dtype)
        x = torch.randn(1, 1 + seed % 7, dtype=dtype)
        bounded = wrap(net, x, precision=precision)
        for method in METHODS:
            lower, upper = bounded.compute_bounds(x=ball(x, 0.0), method=method)
            for low, value, high in zip(lower[0].tolist(), exact(net, x[0]), upper[0].tolist()):
                assert Fraction(low) <= value <= Fraction(high)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_linear_networks_over_a_ball(precision):
    """``w·x ± ε‖w‖`` and the constant ‖w‖ of a product of matrices, in mpmath."""
    for seed in range(_SEEDS):
        dtype = torch.float64 if precision == "auto" else torch.float32
        net = random_net(seed, [3, 4, 2], False, dtype, scale=10.0 ** (seed % 13 - 6))
        x, eps = torch.randn(1, 3, dtype=dtype) * 10.0 ** (seed % 5), [0.1, 0.7, 3e-8][seed % 3]
        bounded = wrap(net, x, precision=precision)
        first, second = ([[Fraction(v) for v in row] for row in layer.weight.tolist()] for layer in net)
        lower, upper = bounded.compute_bounds(x=ball(x, eps), method="local-lip")
        rates = bounded.local_lipschitz(x=ball(x, eps), C=torch.eye(2, dtype=dtype).unsqueeze(0))
        for i, value in enumerate(exact(net, x[0])):
            row = [sum(a * b for a, b in zip(second[i], column)) for column in zip(*first)]
            size = norm_of([row])
            centre, reach = mpmath.mpf(value.numerator) / value.denominator, mpmath.mpf(eps) * size
            assert mpmath.mpf(lower[0, i].item()) <= centre - reach <= centre + reach <= mpmath.mpf(upper[0, i].item())
            assert mpmath.mpf(rates.lower[0, i].item()) <= size <= mpmath.mpf(rates.upper[0, i].item())
            assert rates.upper[0, i] <= float(size) * (1 + 1e-4 if precision == "float32" else 1 + 1e-9)


def touching(seed: int, dtype: torch.dtype, n: int = 6) -> tuple[nn.Sequential, torch.Tensor, float] | None:
    """``relu(w·x + b)`` whose exact maximum over the ball is positive and next to nothing."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(n, 1), nn.ReLU()).to(dtype).requires_grad_(False)
    x, eps = torch.randn(1, n, dtype=dtype), 0.5
    weight = [Fraction(v) for v in net[0].weight[0].tolist()]
    at = sum(w * Fraction(v) for w, v in zip(weight, x[0].tolist()))
    size = norm_of([weight])
    top = mpmath.mpf(at.numerator) / at.denominator + mpmath.mpf(eps) * size
    bias = torch.tensor([float(-top)], dtype=dtype)
    for _ in range(3):
        net[0].bias.data = bias
        if top + mpmath.mpf(bias.item()) > 0:
            return net, x, float(size)
        bias = torch.nextafter(bias, torch.full_like(bias, torch.inf))
    return None


@pytest.mark.parametrize("precision", ["auto", "float32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_neuron_that_is_hardly_alive(dtype, precision):
    """A positive maximum, however small, is no elimination: the constant is ‖w‖, not 0."""
    for seed in range(2 * _SEEDS):
        found = touching(seed, dtype)
        if found is None:
            continue
        net, x, size = found
        bounded = wrap(net, x, precision=precision)
        for method in ("local-lip", "clarke-jacobian"):
            assert bounded.local_lipschitz(x=ball(x, 0.5), method=method).upper.item() >= size * (1 - 1e-7)


@pytest.mark.parametrize("scale", [1e-8, 1e-12, 1e-30])
def test_weights_whose_squares_underflow(scale):
    """Three layers of tiny weights in float32: the constant is their product, not 0."""
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3))).requires_grad_(False)
    for layer in net:
        layer.weight.data = scale * torch.tensor([[1.0, 0.25], [0.25, 1.0]])
    x = torch.zeros(1, 2)
    right = mpmath.mpf(net[0].weight[0, 0].item()) * mpmath.mpf("1.25")
    for precision in ("auto", "float32", "float64"):
        for c in (None, torch.eye(2).unsqueeze(0)):
            found = wrap(net, x, precision=precision).local_lipschitz(x=ball(x, 1.0), C=c)
            size = right**3 if c is None else right**3 / mpmath.mpf("1.25") ** 3
            assert (torch.as_tensor(found.upper) >= float(size) * (1 - 1e-6)).all() and (found.upper > 0).all()
            if precision != "float32" and scale >= 1e-12:
                assert (found.upper <= float(right**3) * 1.001 + 1.5e-45).all()


def test_what_is_provably_constant_keeps_constant_zero():
    """All neurons eliminated, or all weights zero: 0, exactly."""
    dead = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().requires_grad_(False)
    dead[0].bias.data.fill_(-100.0)
    none = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().requires_grad_(False)
    none[2].weight.data.zero_()
    x = torch.zeros(2, 3, dtype=torch.float64)
    for net in (dead, none):
        for c in (None, torch.eye(2, dtype=torch.float64).expand(2, -1, -1)):
            assert (wrap(net, x).local_lipschitz(x=ball(x, 0.3), C=c).upper == 0).all()
        lower, upper = wrap(net, x).compute_bounds(x=ball(x, 0.3), method="local-lip")
        assert (lower <= net(x)).all() and (net(x) <= upper).all() and (upper - lower < 1e-13).all()
