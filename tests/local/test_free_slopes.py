"""Free slopes: the dual against brute force, and ``method="sdp-crown"`` against samples, attacks and the baselines."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.small import ball, networks, wrap
from sampling import assert_sound
from torch import Tensor, nn

from lirpa_lip.activations import smooth_functions as smooth
from lirpa_lip.activations.kinked_functions import absolute, clip, relu
from lirpa_lip.comparison import make_method
from lirpa_lip.errors import ShapeError, UnknownMethodError
from lirpa_lip.local.free_slopes import FreeNeurons
from lirpa_lip.local.layers import Layer
from lirpa_lip.margin import margin_specification

NETWORKS = networks()
ACTIVATIONS = [relu(), absolute(), clip(-0.5, 0.4), smooth.tanh(), smooth.gelu()]
WIDE = torch.float64


def layer_of(activation, seed: int, neurons: int, rates: tuple[float, float]) -> Layer:
    """Two samples with open and stable neurons (and dead ones, where the activation has any)."""
    g = torch.Generator().manual_seed(seed)
    anchor = 2 * torch.randn(2, neurons, generator=g, dtype=WIDE)
    lower = anchor - torch.rand(2, neurons, generator=g, dtype=WIDE)
    upper = anchor + torch.rand(2, neurons, generator=g, dtype=WIDE)
    slopes = activation.secant_range(anchor, lower, upper)
    live_rate, open_rate = (torch.full((2,), rate, dtype=WIDE) for rate in rates)
    return Layer("a", "z", activation, lower, upper, anchor, slopes, live_rate, open_rate)


def problem(layer: Layer, seed: int, sample: Tensor) -> tuple[FreeNeurons, Tensor, Tensor, Tensor]:
    """Neurons and random rows, slopes and logarithms of multipliers."""
    g = torch.Generator().manual_seed(seed + 1)
    neurons = FreeNeurons.of(layer, torch.ones(2, dtype=WIDE), sample)
    shape = (len(sample), 1, layer.anchor.shape[1])
    c = torch.randn(shape, generator=g, dtype=WIDE)
    slope = neurons.low + (neurons.high - neurons.low) * torch.rand(shape, generator=g, dtype=WIDE)
    return neurons, c, slope, 2 * torch.randn(len(sample), 1, 2, generator=g, dtype=WIDE)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ACTIVATIONS),
    st.integers(0, 10**6),
    st.sampled_from([(0.0, 0.0), (0.4, 0.1), (1.0, 1.0), (float("inf"), 0.3), (float("inf"), float("inf"))]),
)
def test_dual_holds(activation, seed, rates):
    """Every point of the box and of both balls, for any slopes and multipliers; an infinite ball says nothing."""
    layer = layer_of(activation, seed, 5, rates)
    sample = torch.tensor([1, 0, 1])
    neurons, c, slope, logs = problem(layer, seed, sample)
    bound = neurons.dual(c, slope, logs, fixed=False)
    assert torch.isfinite(bound).all()
    torch.testing.assert_close(neurons.dual(c, slope, logs, fixed=True), bound)
    g = torch.Generator().manual_seed(seed + 2)
    low, high = layer.lower - layer.anchor, layer.upper - layer.anchor
    t = low + (high - low) * torch.rand(3000, 2, 5, generator=g, dtype=WIDE)
    t[:300] = torch.where(torch.rand(300, 2, 5, generator=g) < 0.5, low, high)
    for weight, rate in ((layer.slopes.magnitude, rates[0]), (layer.slopes.radius, rates[1])):
        size = (weight * t.square()).sum(-1, keepdim=True).sqrt()
        t = t * torch.where(size > rate, rate / size, 1.0)
    rise = (activation.value(layer.anchor + t) - activation.value(layer.anchor))[:, sample]
    value = (c.squeeze(1) * (rise - slope.squeeze(1) * t[:, sample])).sum(-1)
    assert (value <= bound.squeeze(1) + 1e-9).all()


@pytest.mark.parametrize("which", [0, 1])
def test_dual_is_exact_for_one_ball(which):
    """Wide intervals and a known maximum: ``r ‖c (1 − g)‖`` over the ball of stable ReLUs, ``r ‖c‖`` of open |z|."""
    c = torch.rand(1, 1, 5, dtype=WIDE) + 0.1
    activation = (relu(), absolute())[which]
    anchor = torch.full((1, 5), (1e3, 0.0)[which], dtype=WIDE)
    lower, upper = anchor - 900, anchor + 900
    rate, unknown = torch.tensor([0.7], dtype=WIDE), torch.tensor([torch.inf], dtype=WIDE)
    rates = (rate, unknown) if which == 0 else (unknown, rate)
    slopes = activation.secant_range(anchor, lower, upper)
    layer = Layer("a", "z", activation, lower, upper, anchor, slopes, *rates)
    neurons = FreeNeurons.of(layer, torch.full((1,), 2.0, dtype=WIDE), torch.tensor([0]))
    slope = torch.full_like(c, 0.25 if which == 0 else 0.0)
    size = (c * (1 - slope)).norm()
    logs = torch.full((1, 1, 2), -20.0, dtype=WIDE)
    logs[..., which] = (size / (2 * 1.4)).log()
    assert neurons.dual(c, slope, logs, fixed=False).item() == pytest.approx(1.4 * size.item(), rel=1e-6)
    # each ball's own multiplier, where the descent starts, is this one
    assert neurons.multipliers(c, slope)[0, 0, which].item() == pytest.approx(logs[0, 0, which].item(), abs=0.5)


def test_held_maximisers_give_the_same_gradient():
    neurons, c, slope, logs = problem(layer_of(relu(), 3, 7, (0.6, 0.2)), 3, torch.tensor([0, 1, 1]))
    slope, found = slope + 0.05, []  # off the kink that dead neurons have at slope 0
    for fixed in (True, False):
        inputs = [t.clone().requires_grad_() for t in (c, slope, logs)]
        found.append(torch.autograd.grad(neurons.dual(*inputs, fixed=fixed).sum(), inputs))
    for held, full in zip(*found):
        torch.testing.assert_close(held, full)
        assert held.abs().max() > 0
    assert torch.autograd.gradcheck(lambda *inputs: neurons.dual(*inputs, fixed=False), inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_sound_and_never_worse(name):
    net, shape = NETWORKS[name]
    bounded, x = wrap(net, shape, optimize=4)
    c = torch.eye(net(x).shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    plain = wrap(net, shape)[0]
    for eps in (0.0, 0.3):
        with torch.no_grad():
            lower, upper = bounded.compute_bounds(x=ball(x, eps), C=c, method="sdp-crown")
            without = plain.compute_bounds(x=ball(x, eps), C=c, method="local-lip")
        assert_sound(net, x, eps, c, lower, upper, count=40, tol=1e-9)
        # norms are random within their tolerance
        slack = 0.01 * (without[1] - without[0]) + 1e-9
        assert (lower >= without[0] - slack).all() and (upper <= without[1] + slack).all()


def small_net() -> nn.Sequential:
    """Layers of small and equal singular values, where composed bounds alone are weak."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).double().eval()
    for layer in net[::2]:
        nn.init.orthogonal_(layer.weight)
    return net


def test_beats_the_baseline_and_gains_from_steps():
    net = small_net()
    x = torch.randn(4, 6, dtype=WIDE)
    c = margin_specification(torch.tensor([0, 1, 2, 0]), 3, WIDE) * 10
    with torch.no_grad():
        bounds = {n: make_method(n, net, x, steps=20).lower(x, c, 0.8).lower for n in ("local-lip", "sdp-crown-global")}
        # no row is as low as this: all are optimised
        call = dict(C=c, method="sdp-crown", bound_upper=False)
        few, many = (wrap(net, (6,), optimize=n)[0].compute_bounds(x=ball(x, 0.8), **call)[0] for n in (1, 40))
    baseline = bounds["sdp-crown-global"]
    # dead neurons have free slopes there, which may help a row a little
    assert (many >= baseline - 0.03 * baseline.abs()).all() and many.mean() > baseline.mean() + 0.1
    assert (many >= few - 1e-3).all() and (many > few + 1e-2).any()
    assert (many > bounds["local-lip"] + 1e-2).any()


def test_rows_beyond_the_threshold_take_no_steps():
    net = small_net()
    x = torch.randn(4, 6, dtype=WIDE)
    bounded, plain = (wrap(net, (6,), certificate="deterministic", optimize=n)[0] for n in (15, 0))
    with torch.no_grad():
        call = dict(x=ball(x, 0.8), bound_upper=False)
        without, _ = plain.compute_bounds(method="local-lip", **call)
        full, _ = bounded.compute_bounds(method="sdp-crown", **call)
        middle = without.median() + 1e-6
        some, _ = bounded.compute_bounds(method="sdp-crown", decision_thresh=middle, **call)
        same, _ = bounded.compute_bounds(method="sdp-crown", decision_thresh=without - 1.0, **call)
        above, _ = bounded.compute_bounds(method="sdp-crown", decision_thresh=net(x) + 1.0, **call)
        for unchanged in (same, above):  # reached already, and out of reach: of one choice of slopes
            assert (unchanged <= without + 1e-9).all() and (unchanged >= without - 0.25 * (net(x) - without)).all()
        assert (same > without - 1.0).all()
        kept = without > middle
        assert (some[kept] <= without[kept] + 1e-9).all() and (some[kept] > middle).all()
        assert (some[~kept] > without[~kept]).any() and ((some > middle) == (full > middle)).all()
        with pytest.raises(ShapeError, match="decision_thresh"):
            bounded.compute_bounds(method="sdp-crown", decision_thresh=torch.zeros(5), **call)


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_all_dead_and_all_stable(bias):
    """Where the network is affine on the ball, its bound is exact: no step can help."""
    net, shape = NETWORKS["mlp-relu"]
    net = copy.deepcopy(net)
    with torch.no_grad():
        net[0].bias.fill_(bias)
        net[2].bias.fill_(bias * 100)
    bounded, x = wrap(net, shape, optimize=3)
    with torch.no_grad():
        lower, upper = bounded.compute_bounds(x=ball(x, 0.5), method="sdp-crown")
        jacobian = torch.autograd.functional.jacobian(lambda z: net(z[None])[0], x[0])
    torch.testing.assert_close(upper[0] - net(x)[0], 0.5 * jacobian.flatten(1).norm(dim=1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(upper + lower, 2 * net(x), rtol=1e-6, atol=1e-9)


def test_gradients_reach_the_weights():
    net = small_net()
    x = torch.randn(2, 6, dtype=WIDE)
    bounded, _ = wrap(net, (6,), optimize=12)
    for eps in (0.8, 0.0):
        lower, upper = bounded.compute_bounds(x=ball(x, eps), method="sdp-crown")
        gradients = torch.autograd.grad((upper - lower).sum() + lower.sum(), list(net.parameters()), allow_unused=True)
        assert all(g is not None and torch.isfinite(g).all() for g in gradients[:-1])
    assert gradients[0].abs().max() > 0


def test_it_bounds_outputs_only():
    bounded, x = wrap(*NETWORKS["mlp-relu"])
    with pytest.raises(UnknownMethodError, match="local-lip"):
        bounded.local_lipschitz(x=ball(x, 0.1), method="sdp-crown")
