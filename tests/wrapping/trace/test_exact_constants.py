"""Constants reach the bounds exactly: folded in float64, from what the network itself computes them as."""

from __future__ import annotations

import pytest
import torch
from networks.operators import Call
from torch import nn
from torch.nn import functional as F

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.network.graph import build_graph, model_dtype


def at_a_point(model: nn.Module, x: torch.Tensor, method: str = "local-lip"):
    bounded = BoundedModule(model.eval(), x)
    return bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.0)),), method=method)


def test_a_quotient_that_cancels():
    lower, upper = at_a_point(Call(lambda x: x / 3 - 1e6), torch.full((1, 1), 3e6))
    assert -1e-7 < lower.item() <= 0 <= upper.item() < 1e-7


def test_an_average_that_cancels():
    lower, upper = at_a_point(Call(lambda x: F.avg_pool2d(x, 3).flatten(1) - 1e4), torch.full((1, 1, 3, 3), 1e4))
    assert -1e-9 < lower.item() <= 0 <= upper.item() < 1e-9


def test_a_batch_norm_in_the_precision_of_the_computation():
    """scale = w / √(v + ε), of float32 numbers, in float64."""
    norm = nn.BatchNorm1d(1).eval()
    norm.running_var.fill_(0.3)
    norm.running_mean.fill_(1.7)
    graph = build_graph(BoundedModule(norm, torch.rand(2, 1)), torch.float64)
    variance, mean = norm.running_var.double(), norm.running_mean.double()
    x = torch.tensor([[1e6]], dtype=torch.float64)
    expected = (x - mean) / torch.sqrt(variance + norm.eps)
    torch.testing.assert_close(graph.values(x)[graph.output], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [nn.Hardtanh(-0.4, 0.6), Call(lambda x: x.clamp(-0.4, 0.6))])
def test_ends_of_a_clip_are_those_of_the_networks_precision(dtype, clip):
    model = nn.Sequential(nn.Linear(2, 2), clip).to(dtype)
    graph = build_graph(BoundedModule(model, torch.zeros(1, 2, dtype=dtype)), torch.float64)
    (activation,) = (node.activation for node in graph.activations)
    z = torch.tensor([[-9.0, 9.0]], dtype=torch.float64)
    expected = torch.tensor([[-0.4, 0.6]], dtype=dtype).double()
    assert torch.equal(activation.value(z), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_are_those_of_the_networks_precision(dtype):
    model = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.1)).to(dtype)
    graph = build_graph(BoundedModule(model, torch.zeros(1, 2, dtype=dtype)), torch.float64)
    (activation,) = (node.activation for node in graph.activations)
    assert activation.slopes[0] == torch.tensor(0.1, dtype=dtype).item()


def test_what_the_network_computes_from_constants_it_computes_itself():
    """``2 w / 3`` in float32 is the network's weight, with its rounding."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 4))

        def forward(self, x):
            return F.linear(x, 2 * self.weight / 3)

    model = Scaled()
    graph = build_graph(BoundedModule(model, torch.rand(1, 4)), torch.float64)
    (weight,) = (t for node in graph if node.maps for m in node.maps for t in m.tensors())
    assert weight.dtype == torch.float64 and torch.equal(weight, (2 * model.weight / 3).double())
    (gradient,) = torch.autograd.grad(weight.sum(), [model.weight])
    assert (gradient > 0).all()


def test_the_default_is_the_networks_precision():
    bounded = BoundedModule(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))
    assert model_dtype(bounded) == build_graph(bounded).dtype == torch.float32
    assert build_graph(bounded, torch.float64).dtype == torch.float64
