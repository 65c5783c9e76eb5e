"""Weights that are computed from parameters: bounded as they are now, with gradients to what they are computed from."""

from __future__ import annotations

import pytest
import torch
from sampling import assert_sound
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as hooked_spectral_norm

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.local.bounds import network_graph


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


MADE = {
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hooks": hooked_spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "cayley": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
    "householder": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    "pruned": pruned,
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    first = MADE[name](nn.Linear(6, 6))
    conv = MADE["spectral norm"](nn.Conv1d(1, 2, 3))
    return nn.Sequential(
        first, nn.ReLU(), nn.Unflatten(1, (1, 6)), conv, nn.Flatten(), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def ball(x: torch.Tensor, eps: float = 0.1) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)


@pytest.mark.parametrize("name", MADE)
def test_all_methods_hold_before_and_after_a_change(name):
    model, x = network(name), torch.rand(3, 6) * 2 - 1
    bounded = BoundedModule(model, x[:2])
    c = torch.eye(3).expand(3, -1, -1)
    for _ in range(2):
        for method in ("ibp", "crown", "local-lip", "local-lip-crown", "sdp-crown"):
            lower, upper = bounded.compute_bounds(x=ball(x), C=c, method=method)
            assert_sound(model, x, 0.1, c, lower, upper, count=20)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1.3).add_(0.1)


@pytest.mark.parametrize("name", MADE)
def test_the_graph_holds_the_networks_own_rounding(name):
    model, x = network(name), torch.rand(2, 6)
    graph = network_graph(BoundedModule(model, x))
    weights = [t for node in graph if node.maps for m in node.maps for t in m.tensors()]
    assert any(t.shape == (6, 6) and torch.equal(t, model[0].weight) for t in weights)


@pytest.mark.parametrize("name", MADE)
def test_gradients_reach_what_weights_are_computed_from(name):
    model, x = network(name), torch.rand(2, 6)
    lower, upper = BoundedModule(model, x).compute_bounds(x=ball(x), method="local-lip")
    parameters = dict(model[0].named_parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad((upper - lower).sum(), list(parameters.values()))):
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0, parameter


def test_folded_values_are_no_state():
    model = network("weight norm")
    bounded = BoundedModule(model, torch.rand(2, 6))
    assert not any("folded" in name for name in bounded.state_dict())


def test_a_parameter_with_a_region_of_its_own_stays():
    """auto_LiRPA perturbs it; a product that holds it is not folded."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 6))

        def forward(self, x):
            return nn.functional.linear(x, 2 * self.weight)

    model = Scaled()
    model.weight.ptb = PerturbationLpNorm(norm=float("inf"), eps=0.1)
    bounded = BoundedModule(model, torch.rand(2, 6))
    assert not any(type(node).__name__ == "BoundFolded" for node in bounded._modules.values())


def test_an_overwritten_constant():
    """In-place changes of a constant are replayed in their order."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 6))

        def forward(self, x):
            weight = self.weight.clone()
            weight[0] = 3.0
            return nn.functional.linear(x, weight)

    model, x = Written(), torch.rand(2, 6)
    graph = network_graph(BoundedModule(model, x))
    torch.testing.assert_close(graph.values(x)[graph.output], model(x))
