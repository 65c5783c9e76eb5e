"""Rounding in deep networks: bounds hold for the exact rational numbers, and do not grow with absolute paths."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from networks.deep import contracting
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.jacobian.backward import backward_bounds
from lirpa_lip.jacobian.forward import forward_bounds, pull_back_planes
from lirpa_lip.jacobian.tangents import push_tangent
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.regions.region import Region

Matrix = list[list[Fraction]]


def exact(values: Tensor) -> Matrix:
    return [[Fraction(v) for v in row] for row in values.reshape(len(values), -1).tolist()]


def times(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b))
    return [[sum((p * q for p, q in zip(row, column)), Fraction(0)) for column in columns] for row in a]


def exact_values(net: nn.Sequential, x: Tensor) -> tuple[Matrix, Matrix]:
    """Output and Jacobian of a ReLU chain at a point, in rational numbers."""
    value = [[Fraction(v)] for v in x.flatten().tolist()]
    jacobian = [[Fraction(int(i == j)) for j in range(len(value))] for i in range(len(value))]
    for layer in net:
        if isinstance(layer, nn.Linear):
            weight = exact(layer.weight.detach())
            bias = exact(layer.bias.detach().unsqueeze(1))
            value = [[v[0] + b[0]] for v, b in zip(times(weight, value), bias)]
            jacobian = times(weight, jacobian)
        else:
            jacobian = [row if v[0] > 0 else [Fraction(0)] * len(row) for row, v in zip(jacobian, value)]
            value = [[max(v[0], Fraction(0))] for v in value]
    return value, jacobian


def point_bounds(net: nn.Sequential, x: Tensor):
    graph = network_graph(BoundedModule(net, torch.empty_like(x)))
    region = Region.box(x, x, x)
    forward = forward_bounds(graph, region)
    return graph, forward


def cancelling(first: list[Fraction], second: list[Fraction]) -> Tensor:
    """Rows under which every column of a matrix of two rows cancels but for rounding, ``(1, columns, 2)``."""
    pairs = [(float(b), -float(a)) for a, b in zip(first, second)]
    return torch.tensor(pairs, dtype=torch.float64).unsqueeze(0)


@pytest.mark.parametrize("pushes", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_entries_hold_the_exact_jacobian_where_it_cancels(seed, pushes):
    net, x = contracting(8, 30, seed)
    graph, forward = point_bounds(net, x)
    _, jacobian = exact_values(net, x)
    rows = cancelling(*jacobian)
    wanted = times(exact(rows[0]), jacobian)
    found = backward_bounds(graph, forward.slopes, rows, pushes=pushes, entries=5)
    low, high = (t.flatten(2)[0].tolist() for t in found.cotangents[graph.input])
    for i, row in enumerate(wanted):
        for j, value in enumerate(row):
            assert Fraction(low[i][j]) <= value <= Fraction(high[i][j])


@pytest.mark.parametrize("seed", range(3))
def test_pushed_tangents_hold_the_exact_jacobian_where_it_cancels(seed):
    net, x = contracting(8, 30, seed)
    graph, forward = point_bounds(net, x)
    _, jacobian = exact_values(net, x)
    rows = cancelling(*jacobian)
    wanted = times(exact(rows[0]), jacobian)
    found = backward_bounds(graph, forward.slopes, rows, entries=5)
    unit = torch.eye(5, dtype=torch.float64).expand(1, len(rows[0]), 5, 5)
    for sign in (1, -1):
        above = push_tangent(graph, graph.input, sign * unit, found)[0].tolist()
        for i, row in enumerate(wanted):
            for j, value in enumerate(row):
                assert sign * value <= Fraction(above[i][j])


@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_planes_hold_the_exact_values_where_they_cancel(seed, activated):
    net, x = contracting(8, 30, seed)
    if not activated:  # lines around activations have room of their own
        net = nn.Sequential(*(layer for layer in net if isinstance(layer, nn.Linear)))
    graph, forward = point_bounds(net, x)
    value, _ = exact_values(net, x)
    row = cancelling(*value)
    wanted = times(exact(row[0]), value)[0][0]
    point = [Fraction(v) for v in x.flatten().tolist()]
    for sign in (1, -1):
        a, b = pull_back_planes(graph, {graph.output: sign * row}, (forward.lines, forward.slack))
        plane = [Fraction(p) for p in a.flatten().tolist()]
        assert Fraction(b.item()) + sum(p * v for p, v in zip(plane, point)) >= sign * wanted


def test_bounds_of_a_deep_network_stay_close_to_its_constant():
    """Absolute weights along its layers multiply to some 1e40, while the network contracts."""
    net, x = contracting(100, 60, 0)
    bounded = BoundedModule(net, torch.empty_like(x))
    region = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.01)),)
    found = bounded.local_lipschitz(region, method="clarke-jacobian", norm=2)
    assert 0 < float(found.upper) <= 2 * float(found.lower)
