"""Slopes that move with the input: valid against sampled and attacked Jacobians, and worth having."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule
from lirpa_lip.jacobian.backward import backward_bounds
from lirpa_lip.jacobian.forward import forward_bounds
from lirpa_lip.jacobian.moving import MIXES, Mixed, moving_slopes
from lirpa_lip.jacobian.norms import row_norms
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.regions.region import Region
from lirpa_lip.search.constants import clarke_lipschitz
from lirpa_lip.search.monotonicity import monotone_features

SMOOTH = {
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus,
    "logsigmoid": nn.LogSigmoid,
}  # fmt: skip


def dense(activation: str, seed: int, scale: float = 2.0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(3, 7), SMOOTH[activation](), nn.Linear(7, 6), SMOOTH[activation](), nn.Linear(6, 2)
    ).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.mul_(scale)
    return net


class Residual(nn.Module):
    """A convolution, a skip connection past a smooth and a piecewise linear activation, a mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.last = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(27, 2),
        )

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = torch.relu(self.second(h)) + h
        return self.last(torch.sigmoid(2 * h).flatten(1))


def regions(x: torch.Tensor, eps: float) -> dict[str, Region]:
    wide = torch.arange(x[0].numel()).reshape(x[0].shape).remainder(2) * eps  # every other feature is fixed
    return {
        "box": Region.box(x, x - eps, x + eps),
        "partly fixed": Region.box(x, x - wide, x + 2 * wide),
        "ball in a box": Region.make(x, eps, x - eps / 2, x + eps / 3),
    }


def check(net: nn.Module, x: torch.Tensor, eps: float) -> None:
    graph = network_graph(BoundedModule(net, x))
    seed = torch.eye(2, dtype=torch.float64).expand(len(x), 2, 2)
    for name, region in regions(x, eps).items():
        found = monotone_features(graph, region, seed)
        constants = {norm: clarke_lipschitz(graph, region, seed, False, norm=norm).upper for norm in (math.inf, 2, 1)}
        points = region.sample(120, torch.Generator().manual_seed(0))
        jacobians = torch.func.vmap(torch.func.jacrev(lambda z: net(z.unsqueeze(0))[0]))(points.flatten(0, 1))
        jacobians = jacobians.reshape(*points.shape[:2], 2, -1)
        assert (jacobians >= found.lower.unsqueeze(1) - 1e-12).all()
        assert (jacobians <= found.upper.unsqueeze(1) + 1e-12).all()
        moved = jacobians * region.moves.flatten(1)[:, None, None]
        for norm, dual in ((math.inf, 1), (2, 2)):
            rate = torch.linalg.vector_norm(moved, dual, dim=-1)
            assert (rate <= constants[norm].unsqueeze(1) * (1 + 1e-12)).all(), (name, norm)


@pytest.mark.parametrize(("activation", "eps"), [(name, (0.03, 0.6)[k % 2]) for k, name in enumerate(SMOOTH)])
def test_sampled_jacobians_lie_within_the_bounds(activation, eps):
    torch.manual_seed(1)
    check(dense(activation, seed=0), torch.randn(2, 3, dtype=torch.float64), eps)


def test_residual_convolutions_of_smooth_and_piecewise_linear_activations():
    torch.manual_seed(1)
    check(Residual().double(), torch.randn(1, 1, 3, 3, dtype=torch.float64), 0.2)


def test_products_of_every_slope_and_cotangent_lie_below_the_planes():
    """Brute force over s, g and z on one neuron."""
    generator = torch.Generator().manual_seed(0)
    record = (
        network_graph(BoundedModule(dense("tanh", 0), torch.zeros(1, 3, dtype=torch.float64))).activations[0].activation
    )
    for _ in range(50):
        ends = torch.randn(4, generator=generator, dtype=torch.float64) * 2
        z_low, z_high = ends[:2].sort().values.reshape(2, 1, 1)
        low, high = ends[2:].sort().values.reshape(2, 1, 1, 1)
        slopes = record.clarke_range(z_low, z_high, z_low - 9, z_high + 9)
        lines = record.slope_lines(z_low, z_high, slopes)
        assert len(lines) == 2
        z = torch.linspace(float(z_low), float(z_high), 30, dtype=torch.float64)
        g = torch.linspace(float(low), float(high), 30, dtype=torch.float64)
        product = (1 - torch.tanh(z) ** 2)[:, None] * g
        for mix in (*MIXES, (0.3, 1)):
            for a in (1.0, -0.7):
                moved, rows, constant = Mixed.of(slopes, lines[mix[1]], low, high, mix[0]).upper_of(
                    torch.full((1, 1, 1, 1), a, dtype=torch.float64)
                )
                plane = float(moved) * g + float(rows) * z[:, None] + float(constant)
                assert (a * product <= plane + 1e-12).all()


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_moving_slopes_narrow_what_ranges_leave_open(activation):
    net, x = dense(activation, seed=0), torch.full((1, 3), 0.2, dtype=torch.float64)
    graph, region = network_graph(BoundedModule(net, x)), Region.box(x, x - 0.1, x + 0.1)
    forward = forward_bounds(graph, region)
    seed = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    ranges = row_norms(graph, backward_bounds(graph, forward.slopes, seed, entries=3), math.inf)
    moving = moving_slopes(graph, region, forward)
    found = row_norms(graph, backward_bounds(graph, forward.slopes, seed, entries=3, moving=moving), math.inf)
    lower = clarke_lipschitz(graph, region, seed, False, norm=math.inf).lower
    assert (found - lower < 0.5 * (ranges - lower)).all()


def test_branching_closes_the_gap_of_a_smooth_network():
    net, x = dense("tanh", seed=0), torch.full((1, 3), 0.2, dtype=torch.float64)
    graph, region = network_graph(BoundedModule(net, x)), Region.box(x, x - 0.3, x + 0.3)
    seed = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    options = ClarkeOptions(time_limit=60, max_domains=600)
    root = clarke_lipschitz(graph, region, seed, False, norm=math.inf)
    found = clarke_lipschitz(graph, region, seed, False, norm=math.inf, options=options)
    assert (found.upper >= found.lower).all()
    assert (found.upper - found.lower < 0.5 * (root.upper - root.lower)).all()


def test_a_network_without_smooth_activations_has_none():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.zeros(1, 3, dtype=torch.float64)
    graph, region = network_graph(BoundedModule(net, x)), Region.box(x, x - 1, x + 1)
    assert moving_slopes(graph, region, forward_bounds(graph, region)) is None
