"""Monotone features: certified signs of slopes, checked against sampled derivatives and a network built to be
monotone."""

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule
from lirpa_lip.errors import ShapeError
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.regions.region import Region
from lirpa_lip.search.monotonicity import CONSTANT, DECREASING, INCREASING, NEITHER, monotone_features


def partly_monotone() -> nn.Sequential:
    """Rising in feature 0, falling in 1, independent of 2, anything in the others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 1)).double()
    with torch.no_grad():
        net[0].weight[:, 0].abs_()
        net[0].weight[:, 1].abs_().neg_()
        net[0].weight[:, 2] = 0
        net[2].weight.abs_()
        net[4].weight.abs_()
    return net


def question(net, eps=0.5, batch=2):
    x = torch.rand(batch, 6, dtype=torch.float64)
    graph = network_graph(BoundedModule(net, x[:1]))
    return graph, Region.box(x, x - eps, x + eps), torch.ones(batch, 1, 1, dtype=torch.float64)


@pytest.mark.parametrize("time_limit", [0.0, 20.0])
def test_known_signs_are_certified_and_no_slope_escapes(time_limit):
    net = partly_monotone()
    graph, inputs, seed = question(net)
    found = monotone_features(graph, inputs, seed, options=ClarkeOptions(time_limit=time_limit))
    for sample in range(2):
        assert found.verdict(sample, 0, 0) == INCREASING
        assert found.verdict(sample, 0, 1) == DECREASING
        assert found.verdict(sample, 0, 2) in (CONSTANT, INCREASING, DECREASING)
        for point in inputs.sample(100)[sample]:
            slope = torch.autograd.functional.jacobian(lambda x: net(x), point).flatten()
            assert (slope >= found.lower[sample, 0] - 1e-9).all() and (slope <= found.upper[sample, 0] + 1e-9).all()
    assert (found.seen_low >= found.lower - 1e-9).all() and (found.seen_high <= found.upper + 1e-9).all()


def test_branch_and_bound_decides_what_bounds_leave_open():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 1)).double()
    graph, inputs, seed = question(net, eps=0.6, batch=3)
    plain = monotone_features(graph, inputs, seed)
    searched = monotone_features(graph, inputs, seed, options=ClarkeOptions(time_limit=30))
    open_before, open_after = (
        sum(v == "unknown" for s in f.verdicts() for r in s for v in r) for f in (plain, searched)
    )
    assert open_before > 0 and open_after == 0
    for before, after in zip(plain.verdicts(), searched.verdicts()):
        for one, other in zip(before[0], after[0]):
            assert one == other or one == "unknown" or {one, other} <= {INCREASING, DECREASING, NEITHER, CONSTANT}
            assert not (one in (INCREASING, DECREASING) and other != one)


def test_a_falling_function_is_not_certified_as_rising_at_a_kink():
    """−|x| on [−1, 0] rises, and its Clarke derivative at 0 reaches −1: the closed region is not increasing."""

    class Fold(nn.Module):
        def forward(self, x):
            return -torch.relu(x) - torch.relu(-x)

    x = torch.full((1, 1), -0.5, dtype=torch.float64)
    graph = network_graph(BoundedModule(Fold(), x))
    seed = torch.ones(1, 1, 1, dtype=torch.float64)
    ends = torch.tensor([[-1.0]], dtype=torch.float64)
    inside = monotone_features(graph, Region.box(x, ends, ends + 0.75), seed)
    assert inside.verdict(0, 0, 0) == INCREASING
    touching = monotone_features(graph, Region.box(x, ends, ends + 1.0), seed)
    assert float(touching.lower) <= -1 and touching.verdict(0, 0, 0) != INCREASING


def test_features_can_be_chosen_and_must_exist():
    graph, inputs, seed = question(partly_monotone())
    found = monotone_features(graph, inputs, seed, features=[1])
    assert found.features == (1,) and found.lower.shape == (2, 1, 1)
    with pytest.raises(ShapeError, match="feature 9"):
        monotone_features(graph, inputs, seed, features=[9])
