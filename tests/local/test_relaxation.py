"""Lagrangian bounds over box and ball against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lirpa_lip.activations import smooth_functions as smooth
from lirpa_lip.activations.kinked_functions import absolute, clip, relu
from lirpa_lip.local import relaxation
from lirpa_lip.local.layers import Layer
from lirpa_lip.local.relaxation import OpenNeurons
from lirpa_lip.regions.ball_box import box_ball_support
from lirpa_lip.regions.region import Region

ACTIVATIONS = [relu(), absolute(), clip(-0.5, 0.4), smooth.tanh(), smooth.gelu(), smooth.elu(0.7)]


def _layer(activation, seed: int, neurons: int, rate: float) -> Layer:
    g = torch.Generator().manual_seed(seed)
    anchor = torch.randn(2, neurons, generator=g, dtype=torch.float64)
    lower = anchor - torch.rand(2, neurons, generator=g, dtype=torch.float64) * 2
    upper = anchor + torch.rand(2, neurons, generator=g, dtype=torch.float64) * 2
    slopes = activation.secant_range(anchor, lower, upper)
    rates = torch.full((2,), rate, dtype=torch.float64)
    return Layer("a", "z", activation, lower, upper, anchor, slopes, rates, rates)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ACTIVATIONS), st.integers(0, 10**6), st.sampled_from([0.0, 0.05, 0.5, 5.0, float("inf")]))
def test_support_holds(activation, seed, rate):
    layer = _layer(activation, seed, 5, rate)
    neurons = OpenNeurons.of(layer, torch.ones(2, dtype=torch.float64))
    if neurons is None:
        return
    g = torch.Generator().manual_seed(seed + 1)
    c = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    slope = torch.rand(2, 3, 5, generator=g, dtype=torch.float64) * 1.5 - 0.25
    open_c, open_slope = neurons.take(c), neurons.take(slope)
    bound = neurons.support(open_c, open_slope)
    low, high = layer.lower - layer.anchor, layer.upper - layer.anchor
    t = low + (high - low) * torch.rand(4000, 2, 5, generator=g, dtype=torch.float64)
    t[:200] = torch.where(torch.rand(200, 2, 5, generator=g) < 0.5, low, high)
    inside = (layer.slopes.radius * t.square()).sum(-1).sqrt()
    t = t * (rate / inside.clamp(min=rate if rate > 0 else 1e-30)).clamp(max=1.0).nan_to_num(1.0).unsqueeze(-1)
    rise = activation.value(layer.anchor + t) - activation.value(layer.anchor)
    present = torch.zeros(2, 5, dtype=torch.bool).scatter(1, neurons.index, neurons.present.squeeze(1))
    value = (c * present.unsqueeze(1)) * (rise.unsqueeze(2) - slope * t.unsqueeze(2))
    assert (value.sum(-1) <= bound + 1e-9).all()


@pytest.mark.parametrize("rate", [0.3, 5.0, float("inf")])
def test_rows_that_reach_few_neurons(rate, monkeypatch):
    """Neurons that a row does not reach are left out, with the same result, down to rows that reach none."""
    neurons = OpenNeurons.of(_layer(relu(), 0, 40, rate), torch.ones(2, dtype=torch.float64))
    g = torch.Generator().manual_seed(1)
    shape = (2, 6, neurons.index.shape[1])
    c, slope = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    c = c * (torch.rand(shape, generator=g) < torch.tensor([0.0, 0.05, 0.1, 0.1, 0.15, 0.05]).reshape(1, 6, 1))
    found = []
    for share in (-1.0, 1.0):
        monkeypatch.setattr(relaxation, "_SPARSE", share)
        found += [neurons.support(c, slope), neurons.support(c, slope[:, :1])]
    torch.testing.assert_close(found[2:], found[:2])
    assert (found[0][:, 0] == 0).all() and (found[0] > 0).any()


def test_support_is_exact_for_one_relu():
    """One neuron, no ball: the largest deviation from a line is found exactly."""
    layer = _layer(relu(), 0, 1, float("inf"))
    object.__setattr__(layer, "lower", torch.tensor([[-1.0], [-2.0]], dtype=torch.float64))
    object.__setattr__(layer, "upper", torch.tensor([[3.0], [1.0]], dtype=torch.float64))
    object.__setattr__(layer, "anchor", torch.tensor([[-0.5], [0.5]], dtype=torch.float64))
    object.__setattr__(layer, "slopes", relu().secant_range(layer.anchor, layer.lower, layer.upper))
    neurons = OpenNeurons.of(layer, torch.ones(2, dtype=torch.float64))
    one = torch.ones(2, 1, 1, dtype=torch.float64)
    found = neurons.support(one, 0.5 * one)
    # max of relu(z) - relu(a) - (z - a) / 2: at z = 3, a = -0.5; at z = 1 or -2, a = 0.5
    assert torch.allclose(found, torch.tensor([[1.25], [0.75]], dtype=torch.float64))


def _brute_force_support(a, low, high, radius):
    """Largest aᵀe on a fine path of multipliers: the exact solution is clip(a μ) for some μ."""
    scale = torch.logspace(-8, 8, 20001, dtype=torch.float64)
    e = torch.minimum(torch.maximum(a * scale[:, None], low), high)
    size = e.norm(dim=1)
    e = e * (radius / size.clamp(min=radius)).unsqueeze(1)
    return (e @ a).max()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 7]), st.sampled_from([0.01, 0.3, 1.0, 10.0]))
def test_box_and_ball_together(seed, n, radius):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, generator=g, dtype=torch.float64)
    low, high = -torch.rand(n, generator=g, dtype=torch.float64), torch.rand(n, generator=g, dtype=torch.float64)
    if seed % 3 == 0:
        low[0] = 0.0
    bound = box_ball_support(a[None, None], low[None], high[None], torch.tensor([radius], dtype=torch.float64))[0, 0]
    exact = _brute_force_support(a, low, high, radius)
    assert exact - 1e-9 <= bound <= exact * 1.02 + 1e-6


def test_box_and_ball_degenerate():
    a = torch.zeros(1, 1, 4, dtype=torch.float64)
    one = torch.ones(1, 4, dtype=torch.float64)
    assert box_ball_support(a, -one, one, torch.ones(1, dtype=torch.float64)) == 0
    assert box_ball_support(a + 1, -one, one, torch.zeros(1, dtype=torch.float64)) == 0
    assert box_ball_support(a + 1, 0 * one, 0 * one, torch.ones(1, dtype=torch.float64)) == 0


def test_region_support_bounds_samples():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 4, dtype=torch.float64)
    region = Region.make(x, torch.tensor([0.0, 0.3, 2.0]), 0.0, 1.0)
    direction = torch.randn(3, 5, 2, 4, dtype=torch.float64)
    bound = region.support(direction)
    for _ in range(300):
        step = region.sample(1)[:, 0] - x
        assert (torch.einsum("bscd,bcd->bs", direction, step) <= bound + 1e-12).all()
    assert (bound <= region.support(direction, ball_only=True) + 1e-12).all()
