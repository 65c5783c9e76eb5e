"""Two enclosures of one value with nothing in common: an error that names both, never a number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import InvalidBoundError
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.network.graph import build_graph
from lirpa_lip.network.node import intersect
from lirpa_lip.regions.region import Region


def _pair(low: float, high: float):
    return torch.tensor([low]), torch.tensor([high])


def test_intersection():
    low, high = intersect(_pair(0.0, 2.0), _pair(1.0, 3.0), ("z", "one", "other"))
    assert (low.item(), high.item()) == (1.0, 2.0)
    with pytest.raises(InvalidBoundError, match=r"one and other at node 'z'.*0\.5 apart"):
        intersect(_pair(0.0, 1.0), _pair(1.5, 3.0), ("z", "one", "other"))
    # whose rounding nobody has counted may cross by it
    assert intersect(_pair(0.0, 1.0), _pair(1.5, 3.0)) == _pair(1.0, 1.5)


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_from_elsewhere_that_is_none(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().requires_grad_(False)
    x = torch.randn(2, 3, dtype=torch.float64)
    graph, config = build_graph(BoundedModule(net, x)), LocalLipConfig()
    name = next(n.parents[0] for n in graph.activations)
    wrong = torch.full((2, 4), 50.0, dtype=torch.float64)
    region = Region.make(x, 0.1)
    with pytest.raises(InvalidBoundError, match=f"interval arithmetic and bounds given at node '{name}'"):
        propagate(graph, region, config, NormBudget(config, planned_norms(graph, config)), {name: (wrong, wrong + 1)})


@pytest.mark.parametrize("far", [1e3, 1e8, 1e15])
def test_large_terms_that_cancel_are_no_contradiction(far):
    """Biases that cancel to nothing: enclosures differ by rounding alone, which is counted."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
    net = nn.Sequential(first, nn.ReLU(), second).requires_grad_(False)
    first.bias.data += far
    second.bias.data -= second.weight.data.sum(1) * far
    x = torch.randn(2, 4, dtype=torch.float64)
    for method in ("local-lip", "sdp-crown"):
        for bound in ("auto", "product", "composed"):
            bounded = BoundedModule(net, x, bound_opts={"local_lip": LocalLipConfig(bound=bound, tighten=-1)})
            ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),)
            lower, upper = bounded.compute_bounds(x=ball, method=method)
            assert (lower <= upper).all() and (upper - lower < 10 + far * 1e-11).all()
