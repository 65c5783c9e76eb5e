"""Branch and bound against exact minima: mixed integer programs on boxes, dense grids on discs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import CertificateError, ShapeError
from lirpa_lip.local.bounds import prepare
from lirpa_lip.local.half_spaces import PartBounds
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.part_multipliers import Multipliers
from lirpa_lip.local.part_neurons import PartNeurons
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.verify import branching
from lirpa_lip.verify.branch_settings import BranchSettings
from lirpa_lip.verify.branching import decide
from lirpa_lip.verify.splits import HalfSpace, Split, cut

#: Small steps, so that most networks are decided by splits and not on the whole region.
QUICK = BranchSettings(root_steps=8, steps=8, most_parts=64, most_domains=1500, retries=2, refine=0)


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


def network(generator: torch.Generator, sizes: list[int], activation=nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:]):
        linear = nn.Linear(a, b, dtype=torch.float64)
        linear.weight.data = torch.randn(b, a, generator=generator, dtype=torch.float64) / math.sqrt(a) * 1.5
        linear.bias.data = torch.randn(b, generator=generator, dtype=torch.float64) * 0.3
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def region(centre, eps, low=None, high=None):
    return (BoundedTensor(centre, PerturbationLpNorm(norm=2, eps=eps, x_L=low, x_U=high)),)


def wrapped(model, centre, **settings):
    config = LocalLipConfig(**{"certificate": "deterministic", **settings})
    return BoundedModule(model, torch.zeros_like(centre), bound_opts={"local_lip": config})


def exact_on_box(model: nn.Sequential, low: torch.Tensor, high: torch.Tensor, c: torch.Tensor) -> float:
    """``min c · f`` over a box, by HiGHS: an indicator for every neuron that interval arithmetic leaves open."""
    rows, lows, highs = [], [], []
    ends = [(float(a), float(b)) for a, b in zip(low.flatten(), high.flatten())]
    integer = [0] * len(ends)
    place = list(range(len(ends)))
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            fresh = []
            for i in range(len(bias)):
                bounds = np.array([ends[p] for p in place])
                reach = [
                    weight[i] @ bounds.mean(1) + s * abs(weight[i]) @ (bounds[:, 1] - bounds[:, 0]) / 2 for s in (-1, 1)
                ]
                ends.append((reach[0] + bias[i] - 1e-9, reach[1] + bias[i] + 1e-9))
                integer.append(0)
                rows.append({len(ends) - 1: -1.0, **{p: weight[i, k] for k, p in enumerate(place)}})
                lows.append(-bias[i])
                highs.append(-bias[i])
                fresh.append(len(ends) - 1)
            place = fresh
        else:
            fresh = []
            for p in place:
                below, above = ends[p]
                ends.append((max(below, 0.0), max(above, 0.0)))
                ends.append((0.0, 1.0))
                integer += [0, 1]
                y, on = len(ends) - 2, len(ends) - 1
                # y >= z, y <= z − l (1 − on), y <= u on, y >= 0
                rows += [{y: 1.0, p: -1.0}, {y: 1.0, p: -1.0, on: -min(below, 0.0)}, {y: 1.0, on: -max(above, 0.0)}]
                lows += [0.0, -np.inf, -np.inf]
                highs += [np.inf, -min(below, 0.0), 0.0]
                fresh.append(y)
            place = fresh
    matrix = np.zeros((len(rows), len(ends)))
    for r, row in enumerate(rows):
        for k, value in row.items():
            matrix[r, k] += value
    cost = np.zeros(len(ends))
    cost[place] = c.numpy()
    bounds = np.array(ends)
    found = milp(cost, constraints=LinearConstraint(matrix, lows, highs), integrality=integer,
                 bounds=Bounds(bounds[:, 0], bounds[:, 1]), options={"mip_rel_gap": 1e-9})  # fmt: skip
    assert found.status == 0
    return float(found.fun)


def least_on_disc(model: nn.Module, centre: torch.Tensor, eps: float, c: torch.Tensor) -> float:
    """``min c · f`` over the points of a polar grid, and from the best of them by projected descent."""
    radius = torch.linspace(0, 1, 60, dtype=torch.float64).sqrt() * eps
    angle = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    points = centre + (radius[:, None, None] * ring).reshape(-1, 2)
    values = model(points) @ c
    x = points[values.topk(8, largest=False).indices].detach()
    least, step = float(values.detach().min()), eps / 50
    for _ in range(150):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad((model(x) @ c).sum(), x)
        move = x.detach() - centre - step * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)
        x = centre + move * (eps / move.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        least, step = min(least, float((model(x) @ c).detach().min())), step * 0.95
    return least


def both_sides(model, x, c, least, room=0.02, fit=False):
    """A row a little above its least value is verified, and one below it never is.

    Returns whether it was, and how many parts that took.
    """
    bounded, size = wrapped(model, x[0]), 1 + abs(least)
    above, below = (torch.tensor([shift * size - least], dtype=torch.float64) for shift in (room, -1e-6))
    balls = replace(QUICK, fit_neurons=0 if fit else 1 << 30, fit_steps=10)
    held = decide(bounded, x, c[None], above, time_limit=15.0, settings=balls)
    broken = decide(bounded, x, c[None], below, time_limit=15.0, settings=replace(balls, most_domains=16, retries=0))
    assert held.lower.item() <= room * size + 1e-7 and broken.lower.item() <= 0.0
    assert broken.status == "open"
    return held.status == "verified", held.domains


@pytest.mark.parametrize("part", range(5))
def test_boxes_against_milp(part):
    verified, split, total = 0, 0, 20
    for k in range(total):
        generator = torch.Generator().manual_seed(1000 * part + k)
        inputs = int(torch.randint(1, 5, (), generator=generator))
        hidden = torch.randint(2, 7, (1 + k % 2,), generator=generator).tolist()
        model = network(generator, [inputs, *hidden, 2])
        centre = torch.randn(1, inputs, generator=generator, dtype=torch.float64)
        reach = torch.rand(1, inputs, generator=generator, dtype=torch.float64) + 0.05
        low, high = centre - reach, centre + reach
        c = torch.randn(2, generator=generator, dtype=torch.float64)
        eps = float(reach.norm()) * (1 + 1e-9)
        done, domains = both_sides(
            model, region(centre, eps, low, high), c, exact_on_box(model, low, high, c), fit=k % 4 == 3
        )
        verified, split = verified + done, split + (domains > 1)
    assert verified >= 0.9 * total and split >= 0.2 * total


@pytest.mark.parametrize("part", range(5))
def test_discs_against_grids(part):
    verified, split, total = 0, 0, 20
    for k in range(total):
        generator = torch.Generator().manual_seed(7000 + 1000 * part + k)
        hidden = torch.randint(2, 7, (1 + k % 2,), generator=generator).tolist()
        activation = (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, Absolute)[k % 4]
        model = network(generator, [2, *hidden, 2], activation)
        centre = torch.randn(1, 2, generator=generator, dtype=torch.float64)
        eps = float(torch.rand((), generator=generator)) * 1.5 + 0.05
        c = torch.randn(2, generator=generator, dtype=torch.float64)
        done, domains = both_sides(model, region(centre, eps), c, least_on_disc(model, centre, eps, c), fit=k % 3 == 1)
        verified, split = verified + done, split + (domains > 1)
    assert verified >= 0.9 * total and split >= 0.2 * total


def unsound(monkeypatch, name, broken, owner) -> int:
    """How many networks are told a bound above their least value once ``owner.name`` is replaced."""
    monkeypatch.setattr(owner, name, broken)
    wrong = 0
    for k in range(8):
        generator = torch.Generator().manual_seed(300 + k)
        model = network(generator, [2, 5, 2])
        centre = torch.randn(1, 2, generator=generator, dtype=torch.float64)
        c = torch.randn(2, generator=generator, dtype=torch.float64)
        least = least_on_disc(model, centre, 1.0, c)
        d = torch.tensor([-1e-3 - least], dtype=torch.float64)
        settings = replace(QUICK, most_domains=60, retries=0)
        found = decide(wrapped(model, centre), region(centre, 1.0), c[None], d, time_limit=15.0, settings=settings)
        wrong += found.status == "verified"
    return wrong


def test_a_part_that_is_dropped_is_noticed(monkeypatch):
    whole = branching._Search._halves
    assert unsound(monkeypatch, "_halves", lambda self, part: whole(self, part)[:1], branching._Search) > 0


def test_a_maximum_that_is_no_maximum_is_noticed(monkeypatch):
    inner = PartNeurons.inner

    def halved(self, c, row, curvature):
        found = inner(self, c, row, curvature)
        return replace(found, t=found.t / 2, rise=found.rise / 2)

    assert unsound(monkeypatch, "inner", halved, PartNeurons) > 0


def test_any_multipliers_are_valid():
    """Bounds made with random slopes, β of any sign, and λ, against sampled points of the part."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        model = network(generator, [3, 6, 5, 2])
        centre = torch.randn(1, 3, generator=generator, dtype=torch.float64)
        bounded = wrapped(model, centre)
        config = LocalLipConfig(certificate="deterministic")
        graph, ball, _ = prepare(bounded, region(centre, 0.8), config)
        with torch.no_grad():
            layers = propagate(graph, ball, config, NormBudget(config, planned_norms(graph, config)))
        bounds = PartBounds(graph, layers, ball, graph.output)
        first = next(iter(layers.values()))
        open_ = ((first.lower < 0) & (first.upper > 0)).flatten().nonzero().flatten().tolist()
        if not open_:
            continue
        x = points(centre, 0.8, 400, generator)
        values = graph.values(x)
        c = torch.randn(1, 2, generator=generator, dtype=torch.float64)
        rise = ((values[graph.output] - graph.values(centre)[graph.output]) * c).sum(1)
        for above in (False, True):
            cuts = cut(bounds.whole(1), [[HalfSpace(Split(first.name, open_[0], 0.0), above)]])
            z = values[first.parent].flatten(1)[:, open_[0]]
            inside = z >= 0 if above else z <= 0

            def draw(t, scale=1.0):
                return scale * torch.randn(t.shape, generator=generator, dtype=t.dtype)

            start = Multipliers(
                {n: draw(t.lower) for n, t in cuts.items()},
                {n: draw(t.lower) for n, t in cuts.items()},
                {n: draw(torch.zeros(1, 2, dtype=torch.float64), 2.0) for n in cuts},
            )
            for steps in (0, 3):
                found = bounds.descend(c, cuts, start, steps, torch.full((1,), -math.inf, dtype=torch.float64))
                assert inside.any() and float(rise[inside].max()) <= float(found.upper)


def points(centre, eps, count, generator):
    step = torch.randn(count, centre.shape[1], generator=generator, dtype=torch.float64)
    length = torch.rand(count, 1, generator=generator, dtype=torch.float64).mul(2).clamp(max=1 - 1e-12)
    return centre + eps * length * step / step.norm(dim=1, keepdim=True)


def test_arguments_are_checked():
    model = network(torch.Generator().manual_seed(0), [2, 3, 2])
    bounded, centre = wrapped(model, torch.zeros(1, 2, dtype=torch.float64)), torch.zeros(2, 2, dtype=torch.float64)
    c = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ShapeError, match="one sample"):
        decide(bounded, region(centre, 0.1), c, time_limit=1.0)
    with pytest.raises(ShapeError, match="d has 3"):
        decide(bounded, region(centre[:1], 0.1), c, torch.zeros(3), time_limit=1.0)
    bounded = wrapped(model, centre[:1], certificate="estimate")
    with pytest.raises(CertificateError):
        decide(bounded, region(centre[:1], 0.1), c, time_limit=1.0)


def test_no_time_and_no_radius():
    """Nothing moves at ε = 0; without time the whole region's bound is what is left."""
    model = network(torch.Generator().manual_seed(1), [2, 4, 3])
    centre = torch.randn(1, 2, dtype=torch.float64)
    bounded, c = wrapped(model, centre), torch.eye(3, dtype=torch.float64)
    at = model(centre).detach().flatten()
    found = decide(bounded, region(centre, 0.0), c, -at + 0.1, time_limit=0.0)
    assert found.status == "verified" and torch.allclose(found.lower, torch.full_like(at, 0.1))
    found = decide(bounded, region(centre, 2.0), c, -at + 0.1, time_limit=0.0, settings=QUICK)
    assert found.status == "open" and torch.isfinite(found.lower).all()


def test_a_counterexample_lies_in_the_region_and_violates_a_row():
    model = network(torch.Generator().manual_seed(2), [2, 6, 2])
    centre = torch.zeros(1, 2, dtype=torch.float64)
    c = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    d = torch.tensor([-least_on_disc(model, centre, 1.0, c[0]) - 0.2], dtype=torch.float64)
    found = decide(wrapped(model, centre), region(centre, 1.0), c, d, time_limit=10.0)
    assert found.status == "open" and found.counterexample is not None
    assert (found.counterexample - centre).norm() <= 1 + 1e-12
    assert float(model(found.counterexample) @ c[0] + d) <= 0
