"""Stages are cut off at the time limit, by a clock that moves only with the steps that are taken."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.local import tighten
from lirpa_lip.local.bounds import prepare
from lirpa_lip.local.free_slopes import FreeSlopes
from lirpa_lip.local.half_spaces import PartBounds
from lirpa_lip.local.limit import is_late, until
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.verify import InputRegion, cascade
from lirpa_lip.verify.branching import decide
from lirpa_lip.verify.cascade import decide_property
from lirpa_lip.verify.network import network_of
from lirpa_lip.verify.properties import stays_first
from lirpa_lip.verify.settings import VerifySettings


class Clock:
    """Moves by ten seconds with each call of a method."""

    def __init__(self, monkeypatch, owner, name: str) -> None:
        self.now, self.calls = 0.0, 0
        method = getattr(owner, name)

        def slow(*arguments, **options):
            self.now, self.calls = self.now + 10, self.calls + 1
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, slow)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


@pytest.fixture
def centre() -> torch.Tensor:
    return torch.randn(1, 8, generator=torch.Generator().manual_seed(1))


def instance(model, centre, radius):
    network = network_of(model, (8,))
    label = int(model(centre).argmax())
    return network, stays_first(InputRegion.around(centre, 2, Fraction(radius)), label, 3)


def least_seen(model, centre, radius, label):
    step = nn.functional.normalize(torch.randn(4000, 8, generator=torch.Generator().manual_seed(2)))
    y = model(centre + radius * step).detach()
    others = [k for k in range(3) if k != label]
    return float((y[:, [label]] - y[:, others]).min())


@pytest.mark.parametrize("limit, steps", [(25.0, 3), (55.0, 6), (1e6, 30)])
def test_a_descent_ends_at_the_limit_with_a_bound(monkeypatch, model, centre, limit, steps):
    network, claim = instance(model, centre, "1.0")
    clock = Clock(monkeypatch, FreeSlopes, "_evaluate")
    monkeypatch.setattr(cascade, "time", SimpleNamespace(monotonic=clock))
    stages = cascade._stages
    monkeypatch.setattr(
        cascade, "_stages", lambda w, i: [s for s in stages(w, i) if s[0] in ("local-lip", "sdp-crown")]
    )
    verdict = decide_property(network, claim, VerifySettings(time_limit=limit, certificate="deterministic"))
    assert clock.calls == steps + 1  # the last one is the bound of what was reached
    assert verdict.status == "open" and verdict.word == ("timeout" if limit < 1e6 else "unknown")
    assert math.isfinite(verdict.lower) and verdict.lower <= least_seen(model, centre, 1.0, int(claim.label))


@pytest.mark.parametrize("limit, steps", [(0.0, 0), (35.0, 4)])
def test_branching_ends_within_its_root(monkeypatch, model, centre, limit, steps):
    wide, x = model.double(), centre.double()
    bounded = BoundedModule(wide, x, bound_opts={"local_lip": LocalLipConfig(certificate="deterministic")})
    c = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    d = (0.1 - wide(x) @ c.T).detach()[0]  # 0.1 at the centre, below 0 on the ball
    clock = Clock(monkeypatch, PartBounds, "_evaluate")
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=1.5)),)
    found = decide(bounded, ball, c, d, time_limit=limit, clock=clock)
    assert clock.calls == steps + 1 and found.domains == 1
    assert found.status == "open" and bool(torch.isfinite(found.lower).all())
    step = nn.functional.normalize(torch.randn(4000, 8, dtype=torch.float64))
    assert float(found.lower) <= float((wide(x + 1.5 * step) @ c.T + d).detach().min())


def test_what_is_not_tightened_any_more_stays_as_it_was(monkeypatch, model, centre):
    wide, x = model.double(), centre.double()
    config = LocalLipConfig(certificate="deterministic", tighten=-1)
    bounded = BoundedModule(wide, x, bound_opts={"local_lip": config})
    monkeypatch.setattr(tighten, "_ROW_ELEMENTS", 48)  # two rows at a time
    graph, region, _ = prepare(bounded, (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=1.0)),), config)

    def width(late) -> float:
        with torch.no_grad(), until(late):
            layers = propagate(graph, region, config, NormBudget(config, planned_norms(graph, config)))
        points = x + nn.functional.normalize(torch.randn(500, 8, dtype=torch.float64))
        values = graph.values(points)
        for layer in layers.values():
            inside = (values[layer.parent] >= layer.lower) & (values[layer.parent] <= layer.upper)
            assert bool(inside.all())
        return float((list(layers.values())[1].upper - list(layers.values())[1].lower).sum())

    asked = iter(range(1000))
    widths = [width(lambda: True), width(lambda: next(asked) >= 3), width(lambda: False)]
    assert widths[0] > widths[1] > widths[2]


def test_a_limit_inside_another_ends_with_either():
    with until(lambda: True), until(lambda: False):
        assert is_late()
    assert not is_late()
