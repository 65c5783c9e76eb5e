"""Lower bounds where the centre lies on kinks: never above the constant, by any method and in any norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.methods import names_at
from lirpa_lip.nn import MaxMin

LOCAL, JACOBIAN = (names_at("local_lipschitz", family) for family in ("local", "jacobian"))
CASES = [(method, 2) for method in LOCAL] + [(method, p) for method in JACOBIAN for p in (2, math.inf, 1)]


def constant(net, x, method, norm, c, region):
    bounded = BoundedModule(net, torch.zeros_like(x))
    effort = {"samples": 8, "steps": 2} if method in JACOBIAN else {}
    return bounded.local_lipschitz(x=(BoundedTensor(x, region),), C=c, method=method, norm=norm, **effort)


@pytest.mark.parametrize(("method", "norm"), CASES)
@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.2), nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.PReLU()])
def test_one_neuron_on_its_kink(activation, method, norm):
    """The constant is 1: with a slope of 0.2 left and 1 right of the kink no mixture of both may come out as more."""
    net = nn.Sequential(nn.Linear(1, 1), activation, nn.Linear(1, 1)).double()
    net.requires_grad_(False)
    at = 1.0 if isinstance(activation, nn.Hardtanh) else 0.0
    for layer in (net[0], net[2]):
        nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    x = torch.full((1, 1), at, dtype=torch.float64)
    for eps in (0.0, 0.5):
        for c in (None, torch.tensor([[[-1.0]]], dtype=torch.float64)):
            found = constant(net, x, method, norm, c, PerturbationLpNorm(norm=2, eps=eps))
            assert 0 <= float(found.lower) <= 1 <= float(found.upper)
            assert float(found.upper) <= 1 + 1e-9
            if eps:  # across the kink at least half of the steeper slope is seen
                assert float(found.lower) >= 0.5 * (1 - 1e-12)


def _exact(net, norm, c):
    """Constants of a network that is homogeneous: its Jacobian is constant along rays, so one circle shows all."""
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)[:-1] + 1e-5
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p: net(p.unsqueeze(0))[0]))(points)
    if c is None:
        return torch.linalg.matrix_norm(jacobian, norm).amax()
    dual = {2: 2, math.inf: 1, 1: math.inf}[norm]
    return torch.linalg.vector_norm(c[0] @ jacobian, dual, dim=-1).amax(0)


@pytest.mark.parametrize(("method", "norm"), CASES)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), MaxMin()], ids=["relu", "leaky", "maxmin"])
def test_every_neuron_on_its_kink(activation, method, norm):
    torch.manual_seed(3)
    layers = [nn.Linear(2, 6, bias=False), activation, nn.Linear(6, 6, bias=False), activation, nn.Linear(6, 3)]
    net = nn.Sequential(*layers).double().requires_grad_(False)
    nn.init.zeros_(net[4].bias)
    x = torch.zeros(1, 2, dtype=torch.float64)
    for region in (
        PerturbationLpNorm(norm=2, eps=0.7),
        *((PerturbationLpNorm(eps=0.7),) if method in JACOBIAN else ()),
    ):
        for c in (None, torch.randn(1, 4, 3, dtype=torch.float64)):
            exact = _exact(net, norm, c)
            found = constant(net, x, method, norm, c, region)
            assert (found.lower <= exact * (1 + 1e-12)).all() and (found.upper >= exact * (1 - 1e-12)).all()
            assert (found.lower > 0).all()  # the difference across the centre sees something
