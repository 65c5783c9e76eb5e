"""Passes of rising cost: verdicts are those of the last pass, bounds hold, and easy samples leave early."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks.small import ball, networks, wrap

from lirpa_lip import certify
from lirpa_lip.local import bounds, stages
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms
from lirpa_lip.local.stages import planned_in_stages, stages_of

NETWORKS = networks()


def lower_of(name: str, eps: float, thresh, **settings):
    net, shape = NETWORKS[name]
    bounded, x = wrap(net, shape, batch=6, **settings)
    with torch.no_grad():
        call = dict(method="local-lip", bound_upper=False, decision_thresh=thresh)
        return bounded.compute_bounds(x=ball(x, eps), **call)[0], net, x, bounded


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-tanh", "conv-relu", "clipped-maxmin", "residual", "maxpool"])
@pytest.mark.parametrize("certificate", ["deterministic", "probabilistic"])
def test_verdicts_are_those_of_the_last_pass_and_bounds_hold(name, certificate):
    settings = {"certificate": certificate, "norm_tolerance": 1e-3, "seed": 7}
    for eps in (0.02, 0.3):
        plain, net, x, _ = lower_of(name, eps, None, **settings)
        # between the bounds of different rows and samples, so that some of them are decided and some are not
        thresh = plain.median() - 0.05 * (net(x) - plain).mean()
        found, _, _, _ = lower_of(name, eps, thresh, staged=True, **settings)
        margin = 1e-3 * (net(x) - plain)
        assert bool(((found > thresh) | (plain <= thresh + margin)).all())
        assert bool((found > thresh).any()) and bool((found <= thresh).any())
        generator = torch.Generator().manual_seed(0)
        step = torch.randn(40, *x.shape, generator=generator, dtype=x.dtype)
        step = step / step.flatten(2).norm(dim=2).reshape(40, len(x), *[1] * (x.ndim - 1))
        values = torch.stack([net(x + eps * s) for s in step]).amin(0)
        assert bool((found <= values + 1e-9).all())


def test_easy_samples_take_the_first_pass_alone_and_hard_ones_all(monkeypatch):
    made = []
    original = NormBudget.__init__
    monkeypatch.setattr(NormBudget, "__init__", lambda self, *args: (made.append(self), original(self, *args))[1])
    settings = {"certificate": "probabilistic", "norm_tolerance": 1e-3, "seed": 7, "staged": True}
    *_, bounded = lower_of("conv-relu", 0.01, -10.0, **settings)
    config = bounded.bound_opts["local_lip"]
    shape = NETWORKS["conv-relu"][1]
    graph, _, _ = bounds.prepare(bounded, ball(torch.zeros(1, *shape, dtype=torch.float64), 0.1), config)
    first, coarse, last = stages_of(config)
    assert (first.bound, coarse.bound, last) == ("product", "auto", config)
    assert made[-1].calls <= planned_norms(graph, first)
    lower_of("conv-relu", 5.0, -1.0, **settings)
    assert planned_norms(graph, first) < made[-1].calls <= made[-1].planned == planned_in_stages(graph, config)


def test_rows_that_fail_at_the_centre_need_no_more_passes(monkeypatch):
    seen = []
    original = stages.propagate
    monkeypatch.setattr(stages, "propagate", lambda *args: (seen.append(len(args[1])), original(*args))[1])
    lower_of("mlp-relu", 0.5, 100.0, certificate="deterministic", seed=7, staged=True)
    assert seen == [6]


def test_certify_decides_in_stages_where_no_radius_is_wanted(monkeypatch):
    net, shape = NETWORKS["conv-relu"]
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(2))
    entered = []
    original = bounds.staged_upper
    monkeypatch.setattr(bounds, "staged_upper", lambda *a, **k: (entered.append(len(a[2])), original(*a, **k))[1])
    for eps in (0.01, 0.05, 0.2):
        options = {"method": "local-lip", "certificate": "deterministic"}
        with_radius = certify(net, x, eps=eps, **options)
        assert not entered
        without = certify(net, x, eps=eps, radius_steps=0, **options)
        entered.clear()
        assert [c.certified for c in without] == [c.certified for c in with_radius]


def test_settings_of_the_passes():
    config = bounds.LocalLipConfig(norm_tolerance=1e-3, optimize=5)
    assert [s.optimize for s in stages_of(config)] == [0, 0, 5]
    assert [s.bound for s in stages_of(replace(config, bound="composed"))] == ["composed", "composed"]
    exact = replace(config, certificate="deterministic", optimize=0)
    assert [s.bound for s in stages_of(exact)] == ["product", "auto"]
