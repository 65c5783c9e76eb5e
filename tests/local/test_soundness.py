"""Every certificate of every small network against sampled points, attacks and Jacobians."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks.small import ACTIVATIONS, ball, mlp, networks, wrap
from sampling import assert_sound

from lirpa_lip import BoundedModule

NETWORKS = networks()
SETTINGS = {
    "product": dict(bound="product"),
    "product of all pairs": dict(bound="product", anchored=False),
    "composed": dict(bound="composed"),
    "auto": dict(),
    "box": dict(image_box=(0.0, 1.0)),
    "tightened": dict(tighten=-1, optimize=3),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_bounds_hold(name, setting):
    net, shape = NETWORKS[name]
    bounded, x = wrap(net, shape, **SETTINGS[setting])
    outputs = net(x).shape[1]
    c = torch.cat([torch.eye(outputs, dtype=x.dtype), torch.randn(2, outputs, dtype=x.dtype)]).expand(len(x), -1, -1)
    box = dict(low=0.0, high=1.0) if setting == "box" else {}
    for eps in (0.05, 0.7):
        with torch.no_grad():
            lower, upper = bounded.compute_bounds(x=ball(x, eps), C=c, method="local-lip")
        assert lower.shape == upper.shape == c.shape[:2]
        assert_sound(net, x, eps, c, lower, upper, count=40, tol=1e-9, **box)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bound", ["product", "composed", "auto"])
def test_constants_hold(name, bound):
    """Jacobian norms and secants between pairs of points never exceed the constant; the lower value is one of them."""
    net, shape = NETWORKS[name]
    bounded, x = wrap(net, shape, bound=bound)
    outputs = net(x).shape[1]
    rows = torch.randn(len(x), 2, outputs, dtype=x.dtype)
    eps = 0.4
    with torch.no_grad():
        each = bounded.local_lipschitz(x=ball(x, eps), C=rows)
        whole = bounded.local_lipschitz(x=ball(x, eps))
    assert (each.lower <= each.upper).all() and (whole.lower <= whole.upper).all()
    generator = torch.Generator().manual_seed(3)
    for _ in range(12):
        step = torch.randn(2, *x.shape, generator=generator, dtype=x.dtype)
        step = eps * step / step.flatten(2).norm(dim=2).reshape(2, -1, *[1] * (x.ndim - 1))
        a, b = x + step[0], x + step[1] * torch.rand(1, generator=generator, dtype=x.dtype)
        jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: net(z[None])[0], p).flatten(1) for p in a])
        assert (torch.linalg.matrix_norm(jacobian, 2) <= whole.upper + 1e-9).all()
        assert ((rows @ jacobian).norm(dim=2) <= each.upper + 1e-9).all()
        change = (net(a) - net(b)).detach()
        apart = (a - b).flatten(1).norm(dim=1)
        assert (change.norm(dim=1) <= whole.upper * apart + 1e-9).all()
        assert (torch.einsum("bso,bo->bs", rows, change).abs() <= each.upper * apart[:, None] + 1e-9).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_never_worse_than_the_product_bound(name):
    """The default is at most the published product bound, up to the tolerance of its norms."""
    net, shape = NETWORKS[name]
    values = {}
    for bound in ("product", "auto"):
        bounded, x = wrap(net, shape, bound=bound)
        c = torch.eye(net(x).shape[1], dtype=x.dtype).expand(len(x), -1, -1)
        with torch.no_grad():
            lower, upper = bounded.compute_bounds(x=ball(x, 0.3), C=c, method="local-lip")
            rate = bounded.local_lipschitz(x=ball(x, 0.3), C=c).upper
        values[bound] = ((upper - lower) / 2, rate)
    for auto, product in zip(values["auto"], values["product"]):
        assert (auto <= product * 1.01 + 1e-12).all()


@pytest.mark.parametrize("name", ["mlp-relu", "conv-ungrouped", "residual"])
def test_crown_intermediates_are_never_worse_than_crown(name):
    net, shape = NETWORKS[name]
    net = copy.deepcopy(net).float()
    x = torch.rand(3, *shape)
    bounded = BoundedModule(net, x[:1])
    c = torch.eye(net(x).shape[1]).expand(len(x), -1, -1)
    with torch.no_grad():
        crown = bounded.compute_bounds(x=ball(x, 0.2), C=c, method="crown")
        ours = bounded.compute_bounds(x=ball(x, 0.2), C=c, method="local-lip-crown")
    assert (ours[0] >= crown[0] - 1e-6).all() and (ours[1] <= crown[1] + 1e-6).all()


def test_radius_zero_and_batch_of_one():
    net, shape = NETWORKS["mlp-relu"]
    bounded, x = wrap(net, shape, batch=1)
    with torch.no_grad():
        lower, upper = bounded.compute_bounds(x=ball(x, 0.0), method="local-lip")
    assert torch.allclose(lower, net(x), atol=1e-12) and torch.allclose(upper, net(x), atol=1e-12)


def test_one_radius_per_sample():
    net, shape = NETWORKS["mlp-relu"]
    bounded, x = wrap(net, shape)
    eps = torch.tensor([0.0, 0.2, 0.5], dtype=x.dtype)
    with torch.no_grad():
        lower, upper = bounded.compute_bounds(x=ball(x, eps), method="local-lip")
        one, _ = bounded.compute_bounds(x=ball(x, 0.2), method="local-lip")
    assert_sound(net, x, eps, torch.eye(3, dtype=x.dtype).expand(3, -1, -1), lower, upper, count=60, tol=1e-9)
    assert torch.allclose(lower[1], one[1], rtol=2e-3) and torch.allclose(lower[0], upper[0])


def test_all_neurons_dead():
    """A network that is constant on the region has constant 0, and bounds that meet."""
    net, shape = NETWORKS["mlp-relu"]
    net = copy.deepcopy(net)
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    bounded, x = wrap(net, shape)
    with torch.no_grad():
        result = bounded.local_lipschitz(x=ball(x, 0.5))
        lower, upper = bounded.compute_bounds(x=ball(x, 0.5), method="local-lip")
    assert (result.upper == 0).all() and (result.eliminated >= 12).all()
    assert torch.allclose(lower, upper)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    eps=st.sampled_from([0.0, 1e-3, 0.2, 2.0]),
    spread=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_random_networks(sizes, activation, eps, spread, seed):
    """Any widths down to one neuron, any scale of the weights, any radius."""
    torch.manual_seed(seed)
    net = mlp(ACTIVATIONS[activation], tuple(sizes)).double().eval()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(spread)
    bounded, x = wrap(net, (sizes[0],), batch=2, seed=seed)
    c = torch.eye(sizes[-1], dtype=x.dtype).expand(2, -1, -1)
    with torch.no_grad():
        lower, upper = bounded.compute_bounds(x=ball(x, eps), C=c, method="local-lip")
        rate = bounded.local_lipschitz(x=ball(x, eps), C=c)
    assert (rate.lower <= rate.upper + 1e-12).all()
    assert_sound(net, x, eps, c, lower, upper, count=40, tol=1e-8)
