"""Agreement with auto_LiRPA's own Jacobian bounds, which exist from 0.4 on for some networks.

`data/auto_lirpa_071_jacobian.json` was made with auto_LiRPA 0.7.1 from its repository, on torch 2.13, CPU, by
    python tests/jacobian/test_auto_lirpa_jacobian.py > tests/data/auto_lirpa_071_jacobian.json
Where such a version is installed the same figures are also computed afresh. Both sides use CROWN bounds of the
pre-activations and both relax the chain rule linearly, so ours must not be wider by more than rounding (theirs is in
float32), and both must hold every sampled Jacobian.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.regions.region import Region
from lirpa_lip.search.monotonicity import monotone_features

REFERENCE = Path(__file__).parents[1] / "data" / "auto_lirpa_071_jacobian.json"
RADII = (0.05, 0.2, 0.5)
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU}


def network(activation: str, sizes=(4, 10, 10, 3)) -> nn.Sequential:
    """Weights by a formula, so that they are the same everywhere."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(zip(sizes[:-1], sizes[1:])):
        layer = nn.Linear(a, b)
        with torch.no_grad():
            index = torch.arange(a * b, dtype=torch.float64).reshape(b, a)
            layer.weight.copy_(torch.sin(1.7 * index + k) / math.sqrt(a) * (1 if activation == "relu" else 2))
            layer.bias.copy_(torch.cos(torch.arange(b, dtype=torch.float64) + k) / 10)
        layers += [layer, *([ACTIVATIONS[activation]()] if k < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def centre() -> torch.Tensor:
    return torch.tensor([[0.3, -0.2, 0.5, 0.1]])


def their_bounds(activation: str, eps: float) -> tuple[list, list]:
    """By auto_LiRPA's ``compute_jacobian_bounds``, without optimisation."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
    from auto_LiRPA.jacobian import JacobianOP

    class WithJacobian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(activation)

        def forward(self, x):
            y = self.net(x.requires_grad_())
            return JacobianOP.apply(y, x)

    bounded = BoundedModule(WithJacobian(), centre())
    x = BoundedTensor(centre(), PerturbationLpNorm(norm=math.inf, eps=eps))
    return tuple(t.detach().reshape(3, 4).tolist() for t in bounded.compute_jacobian_bounds(x, optimize=False))


def our_bounds(activation: str, eps: float):
    x = centre().double()
    graph = network_graph(BoundedModule(network(activation).double(), x))
    found = monotone_features(graph, Region.box(x, x - eps, x + eps), torch.eye(3, dtype=torch.float64).unsqueeze(0))
    return found.lower[0], found.upper[0]


def compare(activation: str, eps: float, low: torch.Tensor, high: torch.Tensor) -> None:
    ours = our_bounds(activation, eps)
    assert (ours[1] - ours[0] <= (high - low) * (1 + 1e-4) + 1e-5).all()
    if activation == "relu":  # the same lines on both sides; of smooth functions theirs touch elsewhere
        assert (ours[0] >= low - 1e-5).all() and (ours[1] <= high + 1e-5).all()
    rates, theirs = (torch.maximum(a.abs(), b.abs()).sum(1) for a, b in (ours, (low, high)))
    assert (rates <= theirs * (1 + 1e-4) + 1e-5).all()
    net = network(activation).double()
    for k in range(200):
        step = torch.rand(4, generator=torch.Generator().manual_seed(k), dtype=torch.float64) * 2 - 1
        jacobian = torch.autograd.functional.jacobian(net, centre()[0].double() + eps * step)
        assert (jacobian >= ours[0] - 1e-9).all() and (jacobian <= ours[1] + 1e-9).all()


@pytest.mark.parametrize("eps", RADII)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_our_entries_are_at_least_as_tight_as_the_stored_ones_of_auto_lirpa(activation, eps):
    stored = json.loads(REFERENCE.read_text(encoding="utf-8"))[activation][str(eps)]
    compare(activation, eps, *(torch.tensor(t, dtype=torch.float64) for t in stored))


@pytest.mark.parametrize("eps", RADII)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_our_entries_are_at_least_as_tight_as_the_installed_auto_lirpas(activation, eps):
    pytest.importorskip("auto_LiRPA.jacobian", reason="this auto_LiRPA has no Jacobian bounds")
    compare(activation, eps, *(torch.tensor(t, dtype=torch.float64) for t in their_bounds(activation, eps)))


if __name__ == "__main__":
    found = {name: {str(eps): their_bounds(name, eps) for eps in RADII} for name in ACTIVATIONS}
    json.dump(found, sys.stdout, indent=1)
