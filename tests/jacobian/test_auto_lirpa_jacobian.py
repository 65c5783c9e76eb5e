"""Agreement with auto_LiRPA's own Jacobian bounds, which exist from 0.4 on for some networks.

`data/auto_lirpa_071_jacobian.json` was made with auto_LiRPA 0.7.1 from its repository, on torch 2.13, CPU, by
    python tests/jacobian/test_auto_lirpa_jacobian.py > tests/data/auto_lirpa_071_jacobian.json
Where such a version is installed the same figures are also computed afresh. Both sides use CROWN bounds of the
pre-activations and the same relaxation of the chain rule, so ours must not be wider by more than rounding (theirs is in
float32), and both must hold every sampled Jacobian.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

REFERENCE = Path(__file__).parents[1] / "data" / "auto_lirpa_071_jacobian.json"
RADII = (0.05, 0.2, 0.5)


def network(sizes=(4, 10, 10, 3)) -> nn.Sequential:
    """Weights by a formula, so that they are the same everywhere."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(zip(sizes[:-1], sizes[1:])):
        layer = nn.Linear(a, b)
        with torch.no_grad():
            index = torch.arange(a * b, dtype=torch.float64).reshape(b, a)
            layer.weight.copy_(torch.sin(1.7 * index + k) / math.sqrt(a))
            layer.bias.copy_(torch.cos(torch.arange(b, dtype=torch.float64) + k) / 10)
        layers += [layer, *([nn.ReLU()] if k < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def centre() -> torch.Tensor:
    return torch.tensor([[0.3, -0.2, 0.5, 0.1]])


def their_bounds(eps: float) -> tuple[list, list]:
    """By auto_LiRPA's ``compute_jacobian_bounds``, without optimisation."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
    from auto_LiRPA.jacobian import JacobianOP

    class WithJacobian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x):
            y = self.net(x.requires_grad_())
            return JacobianOP.apply(y, x)

    bounded = BoundedModule(WithJacobian(), centre())
    x = BoundedTensor(centre(), PerturbationLpNorm(norm=math.inf, eps=eps))
    return tuple(t.detach().reshape(3, 4).tolist() for t in bounded.compute_jacobian_bounds(x, optimize=False))


def our_bounds(eps: float):
    from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm

    x = centre()
    bounded = BoundedModule(network(), x)
    result = bounded.local_lipschitz(
        (BoundedTensor(x, PerturbationLpNorm(eps=eps)),), C=torch.eye(3), method="clarke-jacobian", norm=1, entries=4
    )
    return tuple(t[0] for t in result.details["entries"])


def compare(eps: float, low: torch.Tensor, high: torch.Tensor) -> None:
    ours = our_bounds(eps)
    assert (ours[1] - ours[0] <= (high - low) * (1 + 1e-4) + 1e-5).all()
    assert (ours[0] >= low - 1e-5).all() and (ours[1] <= high + 1e-5).all()
    net = network().double()
    for k in range(200):
        step = torch.rand(4, generator=torch.Generator().manual_seed(k), dtype=torch.float64) * 2 - 1
        jacobian = torch.autograd.functional.jacobian(net, centre()[0].double() + eps * step)
        assert (jacobian >= ours[0] - 1e-9).all() and (jacobian <= ours[1] + 1e-9).all()


@pytest.mark.parametrize("eps", RADII)
def test_our_entries_are_at_least_as_tight_as_the_stored_ones_of_auto_lirpa(eps):
    stored = json.loads(REFERENCE.read_text(encoding="utf-8"))[str(eps)]
    compare(eps, *(torch.tensor(t, dtype=torch.float64) for t in stored))


@pytest.mark.parametrize("eps", RADII)
def test_our_entries_are_at_least_as_tight_as_the_installed_auto_lirpas(eps):
    pytest.importorskip("auto_LiRPA.jacobian", reason="this auto_LiRPA has no Jacobian bounds")
    compare(eps, *(torch.tensor(t, dtype=torch.float64) for t in their_bounds(eps)))


if __name__ == "__main__":
    json.dump({str(eps): their_bounds(eps) for eps in RADII}, sys.stdout, indent=1)
