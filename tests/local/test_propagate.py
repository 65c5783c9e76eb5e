"""What propagation and a deviation leave out as not needed changes nothing."""

from __future__ import annotations

import pytest
import torch
from networks.small import ball, networks, wrap

from lirpa_lip.local import deviation
from lirpa_lip.local import norm_budget as oracle
from lirpa_lip.local import propagate as sweep_module
from lirpa_lip.local.bounds import prepare
from lirpa_lip.local.deviation import Deviation
from lirpa_lip.local.linearised import affine_map
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.local.rows import output_upper

NETWORKS = networks()


def swept(name: str, eps: float = 0.3, **options):
    bounded, x = wrap(*NETWORKS[name], **options)
    config = bounded.bound_opts["local_lip"]
    graph, region, _ = prepare(bounded, ball(x, eps), config)
    norm = NormBudget(config, planned_norms(graph, config))
    with torch.no_grad():
        return graph, region, propagate(graph, region, config, norm), norm


@pytest.mark.parametrize("name", ["mlp-relu", "conv-ungrouped", "residual", "clipped-maxmin"])
def test_norms_that_cannot_matter_are_not_taken(name, monkeypatch):
    """The rates are those of the smaller of both bounds, up to the tolerance of the norms, from fewer norms."""
    few = swept(name)
    monkeypatch.setattr(sweep_module, "norm_below", lambda *args: torch.zeros(()))
    all_ = swept(name)
    assert few[3].calls <= all_[3].calls <= few[3].planned
    product = swept(name, bound="product")
    for layer in few[2]:
        one, two, published = (found[2][layer] for found in (few, all_, product))
        assert (one.live_rate <= two.live_rate * 1.03).all()
        assert (one.live_rate <= published.live_rate * 1.03).all()
        assert (one.open_rate <= one.live_rate * (1 + 1e-9)).all()


def test_some_norm_is_not_taken():
    _, _, _, norm = swept("mlp-relu", eps=0.05)
    assert norm.calls < norm.planned


def test_estimates_take_the_same_norms_wherever_they_are():
    """Training keeps a warm start for each norm, in the order in which they come."""
    counts = {swept("mlp-relu", eps=eps, certificate="estimate")[3].calls for eps in (0.0, 0.05, 0.5, 5.0)}
    assert len(counts) == 1


def test_estimates_from_below_are_below():
    graph, _, layers, _ = swept("mlp-relu")
    (first, second), mask = graph.activations[:2], next(iter(layers.values())).slopes.magnitude
    map_ = affine_map(graph, first.name, second.parents[0])
    with torch.no_grad():
        found = oracle.norm_below(map_, mask, None)
    dense = map_.forward(torch.eye(mask.shape[1], dtype=mask.dtype)).T
    exact = torch.linalg.matrix_norm(dense * mask.unsqueeze(1), 2)
    assert (found <= exact * (1 + 1e-12)).all() and (found >= 0.5 * exact).all()


def test_tightening_leaves_out_what_is_exact():
    """The first layer of a ball without a box: the local ball is the answer."""
    plain, first = (swept("mlp-relu", tighten=n)[2] for n in (0, 1))
    for name in plain:
        torch.testing.assert_close(first[name].lower, plain[name].lower, rtol=0.02, atol=1e-6)
    deeper = swept("mlp-relu", tighten=2)[2]
    last = list(plain)[-1]
    assert (deeper[last].upper < plain[last].upper - 1e-3).any()


@pytest.mark.parametrize("image_box", [None, (-1.0, 2.0)])
def test_many_rows_try_few_rules(image_box, monkeypatch):
    """Rules that win for none of a few rows are dropped for many; every bound holds and is that of some rule."""
    graph, region, layers, _ = swept("mlp-relu", image_box=image_box)
    search = Deviation(graph, layers, region)
    rows = torch.randn(3, 100, 3, dtype=torch.float64)
    with torch.no_grad():
        each = torch.stack([search.evaluate(graph.output, rows, rule)[0] for rule in search.rules])
        found = search.upper(graph.output, rows)
        monkeypatch.setattr(deviation, "_SAMPLE", 1000)
        full = search.upper(graph.output, rows)
        at = graph.values(region.centre)[graph.output]
        assert (found >= full - 1e-9).all() and (found <= each.amax(0) + 1e-9).all()
        assert (found - full).mean() <= 0.02 * full.mean()
        for _ in range(200):
            step = graph.values(region.sample(1)[:, 0])[graph.output] - at
            assert (torch.einsum("bso,bo->bs", rows, step) <= found + 1e-9).all()


class TestNetworksOfProducts:
    """Rates grow at every product; what intervals hold, and rows through all of them, does not."""

    @staticmethod
    def passed(**options):
        torch.manual_seed(0)
        norms = [torch.nn.LayerNorm(6, eps=1.0) for _ in range(3)]
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), norms[0], torch.nn.Linear(6, 6), norms[1], torch.nn.Tanh(),
                                    torch.nn.Linear(6, 6), norms[2], torch.nn.Linear(6, 3))  # fmt: skip
        bounded, x = wrap(model.double().eval(), (4,), 2, **options)
        config = bounded.bound_opts["local_lip"]
        graph, region, _ = prepare(bounded, ball(x, 0.6), config)
        with torch.no_grad():
            norm = NormBudget(config, planned_norms(graph, config))
            layers = propagate(graph, region, config, norm)
            rows = torch.eye(3, dtype=graph.dtype).expand(2, 3, 3)
            return graph, region, layers, output_upper(graph, region, rows, layers, config)

    @pytest.mark.parametrize("tighten", [0, -1])
    def test_boxes_and_balls_hold_what_samples_reach(self, tighten):
        graph, region, layers, upper = self.passed(tighten=tighten)
        points = region.sample(500, torch.Generator().manual_seed(0))
        start = graph.values(region.centre)
        with torch.no_grad():
            for sample in points.unbind(1):
                values = graph.values(sample)
                for name, layer in layers.items():
                    z = values[layer.parent]
                    assert (layer.lower <= z).all() and (z <= layer.upper).all(), name
                    moved = (layer.root * (z - start[layer.parent])).flatten(1).norm(dim=1)
                    assert (moved <= layer.reach(region.eps)).all(), name
                    moved = (layer.open_root * (z - start[layer.parent])).flatten(1).norm(dim=1)
                    assert (moved <= layer.inner_reach(region.eps)).all(), name
                assert (values[graph.output] <= upper).all()

    def test_no_ball_is_larger_than_its_box(self):
        _, region, layers, _ = self.passed(bound="product")
        for layer in layers.values():
            reach = torch.maximum(layer.upper - layer.anchor, layer.anchor - layer.lower)
            box = (layer.root * reach).flatten(1).norm(dim=1)
            assert (layer.reach(region.eps) <= box * (1 + 1e-6)).all()

    def test_rows_bound_every_neuron(self):
        """Whatever its sign: a variance, and what is divided by it, keep theirs."""
        graph, region, layers, tight = self.passed(tighten=-1)
        rows_of = Deviation(graph, layers, region)
        divisors = [layer for name, layer in layers.items() if name.endswith(":reciprocal")]
        assert len(divisors) == 3
        for layer in divisors:
            assert (layer.lower > 0).all()
            with torch.no_grad():
                row = torch.ones(2, 1, *layer.lower.shape[1:], dtype=graph.dtype)
                assert ((layer.upper - layer.anchor).flatten() <= rows_of.upper(layer.parent, row)[:, 0] + 1e-12).all()
        loose, centre = self.passed()[3], graph.values(region.centre)[graph.output]
        assert ((tight - centre) < 0.5 * (loose - centre)).all()
