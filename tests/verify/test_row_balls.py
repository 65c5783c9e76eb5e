"""Balls of a row's own: hold sampled points, hold the row's minimum, and are worth their norms."""

from dataclasses import replace

import pytest
import torch
from networks.small import convolutions
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.local import row_balls
from lirpa_lip.local.bounds import prepare
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.verify.branch_settings import BranchSettings
from lirpa_lip.verify.branching import decide

CONFIG = LocalLipConfig(certificate="deterministic")
FITTED = BranchSettings(root_steps=30, refine=0, fit_neurons=0, fit_steps=60, most_domains=1)


def around(centre, eps):
    return (BoundedTensor(centre, PerturbationLpNorm(norm=2, eps=eps)),)


def _used(graph, layer, weight, x):
    moved = graph.values(x)[layer.parent].flatten(1) - layer.anchor.flatten(1)
    return (weight * moved.square()).sum(1), x


def fullest(seed: int) -> float:
    """Of points found by ascent, how much of their ball they fill, at most; weights are random."""
    model, centre = convolutions(seed), torch.rand(1, 1, 8, 8, dtype=torch.float64)
    bounded = BoundedModule(model, centre, bound_opts={"local_lip": CONFIG})
    graph, region, _ = prepare(bounded, around(centre, 0.3), CONFIG)
    worst = 0.0
    with torch.no_grad():
        norm = NormBudget(CONFIG, planned_norms(graph, CONFIG) + 3)
        layers = propagate(graph, region, CONFIG, norm)
        search = row_balls.BallSearch(graph, layers, region, graph.output)
        weights = {n: torch.rand_like(t.anchor).flatten(1).pow(4) for n, t in layers.items()}
        balls, _ = search.certified(weights, norm)
    for name, (weight, square) in balls.items():
        x = centre + 0.1 * torch.randn(8, *centre.shape[1:], dtype=torch.float64)
        for _ in range(40):
            used = _used(graph, layers[name], weight, x.detach().requires_grad_())
            (gradient,) = torch.autograd.grad(used[0].sum(), used[1])
            step = gradient.flatten(1) / gradient.flatten(1).norm(dim=1, keepdim=True)
            x = centre + 0.3 * (1 - 1e-12) * step.reshape(x.shape)
        worst = max(worst, float((_used(graph, layers[name], weight, x)[0] / square).max()))
    return worst


def test_points_of_the_region_lie_in_their_balls():
    found = [fullest(seed) for seed in range(3)]
    assert max(found) <= 1.0
    assert max(found) >= 0.97  # of the first layer they are as small as can be


def test_a_radius_that_is_too_small_is_noticed(monkeypatch):
    rate = row_balls.composed_rate
    monkeypatch.setattr(row_balls, "composed_rate", lambda *a, **k: 0.97 * rate(*a, **k))
    assert max(fullest(seed) for seed in range(3)) > 1.0


@pytest.mark.parametrize("seed", range(3))
def test_they_make_bounds_better(seed):
    model, centre = convolutions(seed), torch.rand(1, 1, 8, 8, dtype=torch.float64)
    bounded = BoundedModule(model, centre, bound_opts={"local_lip": CONFIG})
    c = torch.eye(4, dtype=torch.float64)[:1] - torch.eye(4, dtype=torch.float64)[1:2]
    d = 0.3 - model(centre).detach() @ c.T
    without = decide(bounded, around(centre, 0.3), c, d[0], time_limit=60.0, settings=replace(FITTED, fit_steps=0))
    found = decide(bounded, around(centre, 0.3), c, d[0], time_limit=60.0, settings=replace(FITTED, most_domains=2))
    x = centre + 0.3 * nn.functional.normalize(torch.randn(2000, 64, dtype=torch.float64)).reshape(-1, 1, 8, 8)
    least = float((model(x) @ c.T + d).detach().min())
    assert found.lower.item() <= least
    assert found.lower.item() >= without.lower.item() + 0.02 * (0.3 - without.lower.item())
