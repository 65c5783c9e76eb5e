"""Live rates that nothing but the output reads are taken where they can matter, and bounds are the same without."""

from __future__ import annotations

import pytest
import torch
from networks.small import ball, networks, wrap

from lirpa_lip.local import bounds, rows
from lirpa_lip.local.composed import _balanced_weights, _root_weights, stacked_map
from lirpa_lip.local.deferred import last_activations
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate

NETWORKS = networks()
SETTINGS = {"certificate": "deterministic", "seed": 3}


def both(net, shape, eps, monkeypatch):
    """Bounds with rates left for later, how often they were taken after all, and bounds without."""
    settled = []
    original = rows.settle
    monkeypatch.setattr(rows, "settle", lambda layers: (settled.append(list(layers.deferred)), original(layers)))
    bounded, x = wrap(net, shape, **SETTINGS)
    with torch.no_grad():
        later = bounded.compute_bounds(x=ball(x, eps), method="local-lip")
        with monkeypatch.context() as patched:
            patched.setattr(bounds, "propagate", lambda *args, defer: propagate(*args))
            at_once = bounded.compute_bounds(x=ball(x, eps), method="local-lip")
    return later, settled, at_once


@pytest.mark.parametrize("name", ["mlp-relu", "conv-relu", "residual", "clipped-maxmin"])
def test_bounds_are_those_of_all_rates(name, monkeypatch):
    later, _, at_once = both(*NETWORKS[name], 0.3, monkeypatch)
    # anchors' errors and products differ in the last digits, also by where memory lies, and the search for a multiplier
    # may end elsewhere: 1.5e-3 of a width has been seen
    near = 5e-3 * float((at_once[1] - at_once[0]).mean())
    for found, wanted in zip(later, at_once, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=near)


def test_rounding_counts_with_a_rate_left_for_later(monkeypatch):
    """The error of the last products is added on this way too: seen where it is made large."""
    net, shape = NETWORKS["mlp-relu"]
    bounded, x = wrap(net, shape, **SETTINGS)
    with torch.no_grad():
        _, upper = bounded.compute_bounds(x=ball(x, 0.1), method="local-lip")
        monkeypatch.setattr(rows, "positive_slack", lambda *_: 1e3)
        monkeypatch.setattr(rows, "_by_interval", lambda graph, c, layers: c.new_full(c.shape[:2], torch.inf))
        _, wider = bounded.compute_bounds(x=ball(x, 0.1), method="local-lip")
    assert bool((wider > upper + 1e2 * net(x).abs()).all())


def test_a_rate_that_matters_is_taken_once(monkeypatch):
    later, settled, at_once = both(*NETWORKS["maxpool"], 3.0, monkeypatch)
    assert len(settled) == 1
    near = 1e-3 * float((at_once[1] - at_once[0]).mean())
    for found, wanted in zip(later, at_once, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=near)


def test_a_rate_that_cannot_matter_is_not_taken():
    net, shape = NETWORKS["conv-relu"]
    bounded, x = wrap(net, shape, **SETTINGS)
    config = bounded.bound_opts["local_lip"]
    graph, region, _ = bounds.prepare(bounded, ball(x, 0.3), config)
    with torch.no_grad():
        norm = NormBudget(config, planned_norms(graph, config, defer=True))
        later = propagate(graph, region, config, norm, defer=True)
        every = NormBudget(config, planned_norms(graph, config))
        at_once = propagate(graph, region, config, every)
    (last,) = last_activations(graph)
    assert list(later.deferred) == [last] and bool(torch.isinf(later[last].live_rate).all())
    assert norm.calls < every.calls
    rate = at_once[last].live_rate
    assert bool((later.deferred[last].least <= rate * (1 + 1e-9)).all())
    torch.testing.assert_close(later.deferred[last].rate(), rate)


@pytest.mark.parametrize("name", ["conv-relu", "residual"])
def test_a_pass_for_intervals_takes_no_rates_that_none_depends_on(name, monkeypatch):
    net, shape = NETWORKS[name]
    bounded, x = wrap(net, shape, **SETTINGS)
    config = bounded.bound_opts["local_lip"]
    graph, region, _ = bounds.prepare(bounded, ball(x, 0.3), config)
    with torch.no_grad():
        norms = [NormBudget(config, planned_norms(graph, config)) for _ in range(2)]
        some = propagate(graph, region, config, norms[0], intervals_only=True)
        every = propagate(graph, region, config, norms[1])
        for layer, wanted in zip(some.values(), every.values(), strict=True):
            # the same norms, whose last digits depend on where memory lies, and a norm's steps magnify them
            near = 1e-6 * float((wanted.upper - wanted.lower).mean())
            torch.testing.assert_close((layer.lower, layer.upper), (wanted.lower, wanted.upper), rtol=0.0, atol=near)
        assert norms[0].calls <= norms[1].calls - 2 * len(last_activations(graph))
        found = bounded.local_lipschitz(ball(x, 0.3)).upper
        monkeypatch.setattr(bounds, "propagate", lambda *args, intervals_only=False, **rest: propagate(*args, **rest))
        torch.testing.assert_close(found, bounded.local_lipschitz(ball(x, 0.3)).upper, rtol=1e-4, atol=0.0)


def test_weights_are_found_in_float32_and_in_float64_where_it_cannot_hold_them():
    net, shape = NETWORKS["conv-relu"]
    for scale, single in ((1.0, True), (1e-30, False)):
        bounded, x = wrap(net, shape, **SETTINGS)
        config = bounded.bound_opts["local_lip"]
        graph, region, _ = bounds.prepare(bounded, ball(x, 0.3), config)
        with torch.no_grad():
            layers = propagate(graph, region, config, NormBudget(config, planned_norms(graph, config)))
            mask = torch.full((len(x), *graph[graph.output].shape), scale, dtype=torch.float64)
            stacked, radii = stacked_map(graph, graph.output, mask, layers, len(x))
            wanted = _balanced_weights(stacked, radii, 0.0, torch.inf)
            found = _balanced_weights(stacked.to(torch.float32), radii.float(), 1e-12, 1e12)
            assert (found is not None) == single
            torch.testing.assert_close(_root_weights(stacked, radii), wanted, rtol=1e-3 if single else 0.0, atol=0.0)
