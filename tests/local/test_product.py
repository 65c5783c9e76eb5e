"""The product bound against the product of float64 singular values over the same masks."""

from __future__ import annotations

import pytest
import torch
from networks.small import ACTIVATIONS, ball, mlp, propagated, wrap


def _exact(net, layers) -> torch.Tensor:
    """``‖v W_L S‖ ∏ ‖S W S‖`` row by row, with 0/1 masks, by dense SVD."""
    linear = [m for m in net if isinstance(m, torch.nn.Linear)]
    masks = [layer.slopes.magnitude for layer in layers.values()]
    values = []
    for b in range(len(masks[0])):
        product, before = torch.ones((), dtype=torch.float64), None
        for m, mask in zip(linear[:-1], masks):
            matrix = mask[b][:, None] * m.weight.detach().double()
            matrix = matrix if before is None else matrix * before[None]
            product, before = product * torch.linalg.matrix_norm(matrix, 2), mask[b]
        values.append(product * (linear[-1].weight.detach().double() * before[None]).norm(dim=1))
    return torch.stack(values)


def test_equals_dense_singular_values():
    torch.manual_seed(0)
    net = mlp(ACTIVATIONS["relu"], (9, 17, 11, 4)).double()
    for certificate, slack in (("deterministic", 1e-6), ("probabilistic", 5e-3)):
        bounded, x = wrap(net, (9,), bound="product", anchored=False, certificate=certificate)
        _, layers, norm = propagated(bounded, x, 0.3)
        exact = _exact(net, layers)
        rows = torch.eye(4, dtype=torch.float64).expand(3, -1, -1)
        with torch.no_grad():
            bound = bounded.local_lipschitz(x=ball(x, 0.3), C=rows).upper
        assert (bound >= exact * (1 - 1e-12)).all(), "a certificate fell below the exact product"
        assert (bound <= exact * (1 + slack)).all()
        assert norm.worth.kind == certificate


def test_constant_neurons_drop_out():
    """Pushing biases down eliminates neurons, and the bound can only shrink."""
    torch.manual_seed(1)
    net = mlp(ACTIVATIONS["relu"], (6, 20, 20, 3)).double()
    values = []
    for shift in (0.0, 0.5, 5.0):
        with torch.no_grad():
            net[2].bias -= shift
        bounded, x = wrap(net, (6,), bound="product")
        with torch.no_grad():
            result = bounded.local_lipschitz(x=ball(x, 0.1))
        values.append((result.upper, result.eliminated))
    for (before, few), (after, many) in zip(values, values[1:]):
        assert (after <= before * 1.005).all() and (many >= few).all()


def test_known_order_of_clipped_pairs_eliminates_rows():
    """x far above y and clipped: the output is constant, so x's row must not enter the norm of the layer before."""
    from lirpa_lip.nn import ClippedMaxMin

    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), ClippedMaxMin(2, 0.1, -0.1), torch.nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[100.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        net[0].bias.copy_(torch.tensor([1000.0, 0.0]))
        net[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    bounded, x = wrap(net, (4,), bound="product")
    x = torch.zeros_like(x)
    with torch.no_grad():
        result = bounded.local_lipschitz(x=ball(x, 0.05), C=torch.ones(3, 1, 1, dtype=x.dtype))
    assert torch.allclose(result.upper, torch.ones(3, 1, dtype=x.dtype), rtol=1e-3)


def test_gradients_reach_weights_biases_and_thresholds():
    torch.manual_seed(3)
    net = mlp(ACTIVATIONS["clipped_relu"], (5, 8, 8, 3)).double()
    for bound in ("product", "composed", "auto"):
        bounded, x = wrap(net, (5,), bound=bound)
        for p in bounded.parameters():
            p.grad = None
        lower, _ = bounded.compute_bounds(x=ball(x, 0.5), method="local-lip")
        lower.sum().backward()
        grads = {name: p.grad for name, p in bounded.named_parameters()}
        assert all(g is not None and torch.isfinite(g).all() for g in grads.values()), (bound, grads.keys())
        thresholds = [g for name, g in grads.items() if "threshold" in name]
        assert thresholds and any(g.abs().sum() > 0 for g in thresholds)


@pytest.mark.parametrize("bound", ["product", "composed"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gradient_matches_finite_differences(bound, activation):
    """The derivative of a certified bound along a random direction of the first weight."""
    torch.manual_seed(4)
    net = mlp(ACTIVATIONS[activation], (4, 6, 5, 2)).double()
    direction = torch.randn_like(net[0].weight)

    def width() -> tuple[torch.Tensor, torch.nn.Module]:
        bounded, x = wrap(net, (4,), bound=bound, certificate="deterministic")
        lower, upper = bounded.compute_bounds(x=ball(x, 0.2), method="local-lip")
        return (upper - lower).sum(), bounded

    value, bounded = width()
    value.backward()
    weight = next(p for p in bounded.parameters() if p.shape == direction.shape)
    analytic = (weight.grad * direction).sum()
    step = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            net[0].weight += sign * step * direction
            values.append(width()[0])
            net[0].weight -= sign * step * direction
    numeric = (values[0] - values[1]) / (2 * step)
    assert torch.allclose(analytic, numeric, rtol=2e-3)
