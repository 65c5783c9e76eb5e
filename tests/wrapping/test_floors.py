"""What operators say a value never falls below: no value does, and roots and quotients of it have linear bounds."""

from __future__ import annotations

import math

import pytest
import torch
from networks.operators import Call
from sampling import ball_points
from torch import nn
from torch.nn.functional import avg_pool2d

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import DomainError
from lirpa_lip.wrapping import floors, traced_activation

FUNCTIONS = {
    "variance": (lambda x: x.var(1, keepdim=True) + 0.25, 0.25),
    "mean of squares": (lambda x: (x**2).mean(1, keepdim=True) + 1, 1.0),
    "sum of squares": (lambda x: (x * x).sum(1, keepdim=True), 0.0),
    "deviation": (lambda x: torch.sqrt((x**2).mean(1, keepdim=True) + 4), 2.0),
    "scaled": (lambda x: 2 * (x.abs() + 0.5), 1.0),
    "product": (lambda x: (x.relu() + 1) * (torch.exp(x) + 3), 3.0),
    "moved": (lambda x: (torch.sigmoid(x) + 0.5).reshape(-1, 2, 2)[:, 1], 0.5),
    "padded mean": (lambda x: avg_pool2d((x**2 + 1).reshape(-1, 1, 2, 2), 2, 1, 1), 0.0),
    "negative": (lambda x: torch.softmax(x, 1) - 1, -math.inf),
    "cube": (lambda x: x**3 + 1, -math.inf),
    "negated": (lambda x: -(x**2), -math.inf),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_value_lies_below(name):
    fn, expected = FUNCTIONS[name]
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    bounded = BoundedModule(Call(fn), x[:2])
    found = floors.floor(bounded.final_node())
    assert float(fn(x).min()) >= found
    assert found == pytest.approx(expected, rel=1e-5)


def layer_norm() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.LayerNorm(4, eps=0.1), nn.Linear(4, 2))
    return model.double(), torch.randn(2, 4, dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.3, 3.0])
@pytest.mark.parametrize("method", ["crown", "local-lip-crown"])
def test_normalisation_over_large_regions(method, eps):
    model, x = layer_norm()
    region = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    lower, upper = BoundedModule(model, x).compute_bounds(x=region, method=method)
    values = torch.stack([model(p) for p in ball_points(x, eps, 300)])
    assert (lower <= values.amin(0)).all() and (upper >= values.amax(0)).all()


def test_without_floors_there_is_no_bound(monkeypatch):
    monkeypatch.setattr(traced_activation, "raised", lambda bound, lower, upper: (lower, upper))
    with pytest.raises(DomainError):
        test_normalisation_over_large_regions("crown", 3.0)
