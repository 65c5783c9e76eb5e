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


@pytest.mark.parametrize("seed", range(3))
def test_entries_hold_the_exact_jacobian_of_a_deep_chain(seed):
    net, x = contracting(8, 30, seed)
    graph, forward = point_bounds(net, x)
    outputs = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    _, jacobian = exact_values(net, x)
    for pushes in (False, True):
        found = backward_bounds(graph, forward.slopes, outputs, pushes=pushes, entries=5)
        low, high = (t.flatten(2)[0].tolist() for t in found.cotangents[graph.input])
        for i, row in enumerate(jacobian):
            for j, value in enumerate(row):
                assert Fraction(low[i][j]) <= value <= Fraction(high[i][j])


@pytest.mark.parametrize("seed", range(3))
def test_planes_hold_the_exact_values_of_a_deep_chain(seed):
    net, x = contracting(8, 30, seed)
    graph, forward = point_bounds(net, x)
    value, _ = exact_values(net, x)
    rows = torch.cat([torch.eye(2, dtype=torch.float64), -torch.eye(2, dtype=torch.float64)]).unsqueeze(0)
    a, b = pull_back_planes(graph, {graph.output: rows}, (forward.lines, forward.slack))
    for k, (plane, offset) in enumerate(zip(a[0].flatten(1).tolist(), b[0].tolist())):
        above = Fraction(offset) + sum(Fraction(p) * Fraction(v) for p, v in zip(plane, x.flatten().tolist()))
        assert above >= (value[k][0] if k < 2 else -value[k - 2][0])


def test_rounding_that_is_not_counted_would_show():
    """Half of the chains have a Jacobian that float64 computes too small: the tests above can fail."""
    missed = 0
    for seed in range(3):
        net, x = contracting(8, 30, seed)
        graph, forward = point_bounds(net, x)
        outputs = torch.eye(2, dtype=torch.float64).unsqueeze(0)
        found = backward_bounds(graph, forward.slopes, outputs, entries=5)
        low, high = (t.flatten(2)[0] for t in found.cotangents[graph.input])
        _, jacobian = exact_values(net, x)
        middle = ((low + high) / 2).tolist()
        missed += sum(Fraction(m) != v for own, row in zip(middle, jacobian) for m, v in zip(own, row))
    assert missed > 10


@pytest.mark.parametrize("norm", [2, float("inf")])
def test_bounds_of_a_deep_network_stay_close_to_its_constant(norm):
    """Absolute weights along 40 layers multiply to some 1e15, while the network contracts."""
    net, x = contracting(40, 40, 0)
    bounded = BoundedModule(net, torch.empty_like(x))
    region = (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=1e-3)),)
    found = bounded.local_lipschitz(region, method="clarke-jacobian", norm=norm)
    assert float(found.lower) > 0
    assert float(found.upper) <= 2 * float(found.lower)
