"""Branch and bound: exact on tiny networks, valid whenever it stops, resumable; its references agree with each
other."""

import math
import pickle

import numpy as np
import pytest
import torch
from networks.small import networks
from references.clarke_exact import chain_of, enumerate_constant, milp_constant
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import ConfigError, UnsupportedOperatorError
from lirpa_lip.jacobian.forward import forward_bounds
from lirpa_lip.jacobian.options import HEURISTICS
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.regions.region import Region
from lirpa_lip.search.bounds import prepare_region
from lirpa_lip.search.domains import _dense
from lirpa_lip.search.feasibility import contradiction, shrink, split_constraints

NORMS = (math.inf, 2, 1)


def small(seed: int, sizes=(3, 8, 8, 2), scale: float = 2.0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:])):
        layers += [nn.Linear(a, b), *([nn.ReLU()] if i < len(sizes) - 2 else [])]
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)
    return net


def boxed(net, eps: float, seed: int = 0, norm: float = math.inf, batch: int = 1):
    torch.manual_seed(seed)
    x = torch.rand(batch, net[0].in_features, dtype=torch.float64)
    bounded = BoundedModule(net, x[:1])
    return bounded, (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps)),), x


def reference(bounded, x, eps, norm, row=None):
    chain = chain_of(network_graph(bounded))
    return enumerate_constant(chain, (x - eps)[0].numpy(), (x + eps)[0].numpy(), norm, row)[0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_exact_within_a_per_cent_on_up_to_twenty_neurons(seed, norm):
    sizes = [(3, 8, 8, 2), (2, 20, 2), (4, 6, 6, 6, 3)][seed]
    net = small(seed, sizes)
    bounded, region, x = boxed(net, 0.4, seed)
    exact = reference(bounded, x, 0.4, norm)
    result = bounded.local_lipschitz(region, method="clarke-jacobian", norm=norm, time_limit=60)
    assert exact * (1 - 1e-6) <= float(result.upper) <= exact * 1.01
    assert exact * 0.99 <= float(result.lower) <= exact * (1 + 1e-6)
    assert result.details["stopped"] == "settled"


@pytest.mark.parametrize("row", [0, 1])
def test_single_rows_and_the_two_references_agree(row):
    net = small(5, (3, 6, 6, 2))
    bounded, region, x = boxed(net, 0.5)
    exact = reference(bounded, x, 0.5, math.inf, row)
    assert milp_constant(chain_of(network_graph(bounded)), (x - 0.5)[0].numpy(), (x + 0.5)[0].numpy(), row) == (
        pytest.approx(exact, rel=1e-5)
    )
    c = torch.eye(2, dtype=torch.float64)[[row]]
    result = bounded.local_lipschitz(region, C=c, method="clarke-jacobian", norm=math.inf, time_limit=30)
    assert exact * (1 - 1e-6) <= float(result.upper) <= exact * 1.01


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_every_heuristic_ends_at_the_same_constant(heuristic):
    net = small(2, (3, 7, 7, 2))
    bounded, region, x = boxed(net, 0.4)
    result = bounded.local_lipschitz(
        region, method="clarke-jacobian", norm=math.inf, time_limit=60, heuristic=heuristic
    )
    assert float(result.upper) == pytest.approx(reference(bounded, x, 0.4, math.inf), rel=2e-3)


def sampled_constant(net, points, norm):
    best = 0.0
    for point in points:
        jacobian = torch.autograd.functional.jacobian(lambda x: net(x.unsqueeze(0)).flatten(), point).flatten(1)
        best = max(best, float(torch.linalg.norm(jacobian, {math.inf: math.inf, 2: 2, 1: 1}[norm])))
    return best


@pytest.mark.parametrize(
    "name", ["mlp-leaky", "mlp-hardtanh", "mlp-tanh", "maxmin", "clipped-maxmin", "residual", "maxpool"]
)
def test_other_activations_and_graphs_stay_sound_while_they_tighten(name):
    net, shape = networks()[name]
    x = torch.rand(1, *shape, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    region = (BoundedTensor(x, PerturbationLpNorm(eps=0.3)),)
    options = dict(time_limit=60, max_domains=60, heuristic="strong")
    result = bounded.local_lipschitz(region, method="clarke-jacobian", norm=math.inf, **options)
    _, inputs, _ = prepare_region(bounded, region)
    assert float(result.upper) >= sampled_constant(net, inputs.sample(100)[0], math.inf) * (1 - 1e-9)
    assert float(result.upper) < float(result.details["bounds"]["clarke-jacobian"])
    assert result.lower <= result.upper


def test_balls_are_bounded_and_tightened_too():
    net = small(4, (4, 8, 8, 2))
    bounded, region, _ = boxed(net, 0.5, norm=2)
    _, inputs, _ = prepare_region(bounded, region)
    result = bounded.local_lipschitz(region, method="clarke-jacobian", norm=2, time_limit=30)
    seen = sampled_constant(net, inputs.sample(500)[0], 2)
    assert seen * (1 - 1e-9) <= float(result.upper) <= 1.02 * float(result.lower)


def test_valid_whenever_it_stops_and_resumed_to_the_same_end():
    net = small(1, (4, 8, 8, 3))
    bounded, region, x = boxed(net, 0.5)
    exact = reference(bounded, x, 0.5, math.inf)
    call = dict(method="clarke-jacobian", norm=math.inf, time_limit=60, batch=1)
    previous, state, reasons = math.inf, None, []
    for domains in (2, 6, 14, 40):
        result = bounded.local_lipschitz(region, max_domains=domains, resume=state, **call)
        assert exact * (1 - 1e-6) <= float(result.upper) <= previous
        assert float(result.lower) <= exact * (1 + 1e-6)
        previous, state = float(result.upper), pickle.loads(pickle.dumps(result.details["state"]))
        reasons.append(result.details["stopped"])
    assert reasons[:2] == ["domains", "domains"]
    result = bounded.local_lipschitz(region, resume=state, **call)
    assert result.details["stopped"] == "settled" and float(result.upper) == pytest.approx(exact, rel=2e-3)
    tiny = bounded.local_lipschitz(region, memory=1, **call)
    assert tiny.details["stopped"] == "memory" and float(tiny.upper) >= exact * (1 - 1e-6)


def test_an_interrupt_leaves_a_valid_bound():
    net = small(1, (4, 8, 8, 3))
    bounded, region, x = boxed(net, 0.5)
    seen = []

    def stop(progress):
        seen.append(progress)
        raise KeyboardInterrupt

    result = bounded.local_lipschitz(
        region, method="clarke-jacobian", norm=math.inf, time_limit=60, batch=2, progress=stop
    )
    assert result.details["stopped"] == "interrupted" and seen[0].waiting > 0
    assert float(result.upper) >= reference(bounded, x, 0.5, math.inf) * (1 - 1e-6)


def test_a_state_of_another_question_is_refused():
    net = small(0)
    bounded, region, _ = boxed(net, 0.4)
    state = bounded.local_lipschitz(region, method="clarke-jacobian", norm=2, time_limit=5).details["state"]
    with pytest.raises(ConfigError, match="another"):
        bounded.local_lipschitz(region, method="clarke-jacobian", norm=1, time_limit=5, resume=state)


def test_batches_give_what_single_samples_give():
    net = small(6, (3, 6, 6, 2))
    bounded, region, x = boxed(net, 0.3, batch=2)
    both = bounded.local_lipschitz(region, method="clarke-jacobian", norm=math.inf, time_limit=60)
    for k in range(2):
        exact = reference(bounded, x[k : k + 1], 0.3, math.inf)
        assert exact * (1 - 1e-6) <= float(both.upper[k]) <= exact * 1.01


@pytest.mark.parametrize("ball", [False, True])
def test_contradictions_are_proved_and_only_where_there_are_some(ball):
    """Random half spaces against a dense grid of the region."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.zeros(1, 2, dtype=torch.float64)
    radius = torch.tensor(1.0, dtype=torch.float64)
    inputs = Region.make(centre, radius) if ball else Region.box(centre, centre - 1, centre + 1)
    axis = torch.linspace(-1, 1, 101, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    grid = grid[grid.norm(dim=1) <= 1] if ball else grid
    proved = 0
    for _ in range(60):
        a = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        b = 0.5 * torch.randn(3, generator=generator, dtype=torch.float64) - 0.3
        held = (grid @ a.T + b >= 0).all(1)
        gone, point = contradiction(inputs, a, b)
        smaller = shrink(inputs, a.unsqueeze(0), b.unsqueeze(0))
        assert not (gone and bool(held.any()))
        if bool(held.any()):
            kept = grid[held]
            assert (kept >= smaller.low - 1e-9).all() and (kept <= smaller.high + 1e-9).all()
            assert not bool(smaller.empty)
            assert point is not None and bool((point.flatten() @ a.T + b >= -1e-9).all())
        proved += gone
    assert proved > 10


@pytest.mark.parametrize("name", ["mlp-hardtanh", "mlp-tanh"])
def test_no_point_of_a_domain_is_cut_off_by_its_splits(name):
    """Random splits that a random point satisfies: the point keeps all constraints, and stays in the shrunken box."""
    net, shape = networks()[name]
    x = torch.rand(1, *shape, dtype=torch.float64)
    graph, inputs, _ = prepare_region(BoundedModule(net, x), (BoundedTensor(x, PerturbationLpNorm(eps=0.5)),))
    root = forward_bounds(graph, inputs)
    generator = torch.Generator().manual_seed(0)
    for point in inputs.sample(20, generator)[0]:
        values = {n: v.detach() for n, v in graph.values(point.unsqueeze(0)).items()}
        splits, dense = [], {}
        for node in graph.activations:
            parent = node.parents[0]
            lower, upper = (t.flatten() for t in root.intervals[parent])
            z = values[parent].flatten()
            dense[parent] = tuple(torch.full_like(values[parent], s * math.inf) for s in (-1, 1))
            for i in range(0, len(z), 3):
                knot = float(lower[i] + torch.rand(1, generator=generator, dtype=z.dtype) * (upper[i] - lower[i]))
                after, before = (knot, math.inf) if float(z[i]) >= knot else (-math.inf, knot)
                splits.append((parent, i, after, before))
                dense[parent][0].view(-1)[i], dense[parent][1].view(-1)[i] = after, before
        forward = forward_bounds(graph, inputs, dense)
        assert not bool(forward.empty)
        a, b = split_constraints(graph, inputs, forward, [splits])
        assert (a[0] @ point.flatten() + b[0] >= -1e-12).all()
        smaller = shrink(inputs, a, b)
        assert (point >= smaller.low[0] - 1e-12).all() and (point <= smaller.high[0] + 1e-12).all()
        assert not contradiction(inputs, a[0], b[0])[0]
        for parent, (lower, upper) in forward.intervals.items():
            assert (values[parent] >= lower - 1e-12).all() and (values[parent] <= upper + 1e-12).all()


def test_splits_are_written_whatever_the_memory_layout_of_the_bounds():
    like = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    dense = _dense([(("z", 17, 0.5, math.inf),), ()], {"z": (like, like)})
    after, before = dense["z"]
    assert after[0, 1, 0, 1] == 0.5 and after.isfinite().sum() == 1 and not before.isfinite().any()


def test_references_refuse_what_they_cannot_do():
    bounded = BoundedModule(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.zeros(1, 2))
    with pytest.raises(UnsupportedOperatorError):
        chain_of(network_graph(bounded))
    wide = chain_of(network_graph(BoundedModule(small(0, (2, 50, 1)), torch.zeros(1, 2, dtype=torch.float64))))
    with pytest.raises(ConfigError, match="40"):
        enumerate_constant(wide, np.zeros(2), np.ones(2))
