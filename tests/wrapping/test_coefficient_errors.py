"""Rounding of CROWN's bounds: slopes of the intervals CROWN used, and sums over the coefficients it had."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.autolirpa.calls import double_input, in_float64
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.network.coefficient_errors import CoefficientErrors
from lirpa_lip.network.intervals import used_intervals
from lirpa_lip.network.linear_bound_errors import linear_bound_rounding


class Steep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.exp(self.first(x)))


class Gates(nn.Module):
    """A chain of products, as in a recurrent cell, between layer norms by hand."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(4, 8) for _ in range(steps))
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.maps:
            a, b = step(x).chunk(2, 1)
            x = x + torch.sigmoid(a) * torch.tanh(b)
            x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 0.1)
        return self.last(x)


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.keys(x), 1) * x)


def ball(x: Tensor, eps: float) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)


def test_slopes_are_those_of_the_intervals_that_crown_used():
    """Interval arithmetic knows less of the pre-activation than CROWN used: lines there were steeper."""
    torch.manual_seed(0)
    graph = network_graph(BoundedModule(Steep().double(), torch.zeros(1, 3, dtype=torch.float64)))
    x = torch.zeros(1, 3, dtype=torch.float64)
    own = linear_bound_rounding(graph, (x - 0.1, x + 0.1))[graph.output]
    (affine,) = [n.name for n in graph if n.maps is not None and n.name != graph.output]
    wide = {affine: (x - 10, x + 10)}
    assert bool((linear_bound_rounding(graph, (x - 0.1, x + 0.1), wide)[graph.output] > 1000 * own).all())


def watched(model: nn.Module, x: Tensor, eps: float):
    bounded = BoundedModule(model, x[:1])
    graph = network_graph(bounded, torch.float64)
    box = (x.double() - eps, x.double() + eps)
    c = torch.eye(graph[graph.output].shape.numel(), dtype=torch.float64).expand(len(x), -1, -1)
    with in_float64(bounded):
        asked = {"C": c, "method": "crown"}
        before = bounded.compute_bounds(x=double_input(ball(x, eps)), **asked)
        used = used_intervals(bounded, graph)
        forward = linear_bound_rounding(graph, box, used)[graph.output]
        watch = CoefficientErrors(bounded, graph, box, used)
        with watch.watching():
            after = bounded.compute_bounds(x=double_input(ball(x, eps)), **asked)
        assert watch.holds(used_intervals(bounded, graph))
        assert not any("bound_backward" in vars(n) for n in bounded._modules.values())
    assert "backward_general" not in vars(bounded)
    return watch, forward, before, after


@pytest.mark.parametrize("make", [Gates, Scores])
def test_watched_errors_are_small_cover_what_float32_loses_and_leave_nothing_behind(make):
    torch.manual_seed(1)
    model, x = make(), torch.randn(2, 4)
    watch, forward, before, after = watched(model, x, 0.05)
    assert bool((watch.rows > 0).all()) and float(watch.rows.max()) < 1e-8
    assert bool((watch.rows < forward.flatten(1)).all())
    for first, second in zip(before, after, strict=True):  # wider intervals move the bounds little
        assert torch.allclose(first, second, atol=1e-7)
    # the same pass in float32 rounds as much more as its numbers are coarser, and stays inside
    lower, upper = BoundedModule(model, x[:1]).compute_bounds(x=ball(x, 0.05), method="crown")
    scale = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    for narrow, wide in ((lower, before[0]), (upper, before[1])):
        assert bool(((narrow.double() - wide).abs().flatten(1) <= watch.rows * scale).all())


def test_no_certificate_where_a_coefficient_was_not_read():
    torch.manual_seed(1)
    watch, *_ = watched(Gates(1), torch.randn(1, 4), 0.05)
    assert not watch.holds({"/none": (torch.zeros(1, 4), torch.zeros(1, 4))})
    wide = {name: (low - 1, high + 1) for name, (low, high) in watch.taken.items()}
    assert not watch.holds(wide)
    watch.complete = False
    assert not watch.holds({})


@pytest.mark.parametrize("make", [Gates, Scores])
def test_never_looser_than_crown_and_valid(make):
    torch.manual_seed(2)
    model, x = make().double(), torch.randn(2, 4, dtype=torch.float64)
    bounded = BoundedModule(model, x[:1])
    crown = bounded.compute_bounds(x=ball(x, 0.1), method="crown")
    lower, upper = bounded.compute_bounds(x=ball(x, 0.1), method="local-lip-crown")
    assert bool((lower >= crown[0] - 1e-7).all()) and bool((upper <= crown[1] + 1e-7).all())
    directions = torch.nn.functional.normalize(torch.randn(500, *x.shape, dtype=torch.float64), dim=2)
    values = torch.stack([model(x + 0.1 * d) for d in directions])
    assert bool((values >= lower).all()) and bool((values <= upper).all())


def test_another_pass_has_room_for_what_the_first_widened():
    torch.manual_seed(1)
    watch, *_ = watched(Scores(), torch.randn(1, 4), 0.05)
    wide = {name: (low - 1, high + 1) for name, (low, high) in watch.taken.items()}
    assert not watch.holds(wide)
    held = watch.hull(wide)
    assert all(bool((held[n][0] <= low).all() and (held[n][1] >= high).all()) for n, (low, high) in wide.items())
