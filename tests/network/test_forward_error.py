"""The running error bound holds for any order of summation, in every precision, at points and over regions."""

from __future__ import annotations

import pytest
import torch
from networks.operators import ROWS, traced
from torch import nn

from lirpa_lip import BoundedModule
from lirpa_lip.network.forward_error import difference, first_order, forward_error, terms
from lirpa_lip.network.graph import build_graph
from lirpa_lip.norms.linear_map import (
    ComposedMap,
    ConvMap,
    ConvTransposeMap,
    DenseMap,
    DiagonalMap,
    IdentityMap,
    ReshapeMap,
    SumMap,
)
from lirpa_lip.regions.region import Region


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_row_stays_within(dtype):
    for name, row in ROWS.items():
        model, bounded = traced(name, dtype)
        graph = build_graph(bounded).to(torch.float64)
        x = row.inputs(3, seed=9, dtype=dtype)
        values = graph.values(x.double())
        errors = difference(graph, {k: (v, v) for k, v in values.items()}, dtype, torch.float64)
        apart = (model(x).double() - values[graph.output]).abs()
        assert (apart <= errors[graph.output]).all(), name
        assert errors[graph.output].max() < 1e7 * torch.finfo(dtype).eps + 1e-7, name


def permuted(model: nn.Sequential, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same network with every sum in another order, one product after the other."""
    for layer in model:
        if not isinstance(layer, nn.Linear):
            x = layer(x)
            continue
        total = torch.zeros(len(x), layer.out_features, dtype=x.dtype)
        for i in torch.randperm(layer.in_features, generator=generator):
            total = total + x[:, i : i + 1] * layer.weight[:, i]
        x = total + layer.bias
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_any_order_of_summation(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 3)).to(dtype)
    exact = nn.Sequential(*list(model)).double()
    x = torch.rand(4, 20).to(dtype)
    graph = build_graph(BoundedModule(exact, x.double()))
    region = Region.make(x.double(), 0.0)
    values = graph.values(region.centre)
    errors = forward_error(graph, {k: (v, v) for k, v in values.items()}, dtype)
    sizes = forward_error(graph, {k: v.abs() + 1e-9 for k, v in values.items()}, dtype)
    model = model.to(dtype)
    seen = torch.zeros_like(values[graph.output])
    generator = torch.Generator().manual_seed(1)
    runs = [model(x)] + ([permuted(model, x, generator) for _ in range(20)] if dtype == torch.float32 else [])
    for run in runs:
        seen = torch.maximum(seen, (run.double() - values[graph.output]).abs())
    assert (seen <= errors[graph.output]).all() and (errors[graph.output] <= sizes[graph.output] * 1.01).all()
    assert (seen > 0).any()


@torch.no_grad()
def test_over_a_region_it_covers_its_points():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Sigmoid(), nn.Linear(30, 3))
    graph = build_graph(BoundedModule(model, torch.zeros(1, 6))).to(torch.float64)
    x = torch.rand(2, 6, dtype=torch.float64)
    low, high = graph.values(x), None
    ranges = {name: (v - 5, v + 5) for name, v in low.items()}
    wide = forward_error(graph, ranges, torch.float32)[graph.output]
    for _ in range(5):
        values = graph.values(x + (torch.rand_like(x) - 0.5) * 0.1)
        point = forward_error(graph, {k: (v, v) for k, v in values.items()}, torch.float32)[graph.output]
        assert (point <= wide).all()
    assert high is None


def test_overflow_is_infinite():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    graph = build_graph(BoundedModule(model, torch.zeros(1, 2).double()))
    values = graph.values(torch.full((1, 2), 1e5, dtype=torch.float64))
    errors = forward_error(graph, {k: (v, v) for k, v in values.items()}, torch.float16)
    assert torch.isinf(errors[graph.output]).all()
    assert torch.isfinite(forward_error(graph, values, torch.float32)[graph.output]).all()


def test_a_rounded_input_counts():
    model = nn.Sequential(nn.Linear(2, 2))
    graph = build_graph(BoundedModule(model, torch.zeros(1, 2))).to(torch.float64)
    values = {k: (v, v) for k, v in graph.values(torch.rand(1, 2, dtype=torch.float64)).items()}
    plain = forward_error(graph, values, torch.bfloat16)[graph.output]
    assert (forward_error(graph, values, torch.bfloat16, rounded_input=True)[graph.output] > plain).all()


def test_first_order_is_below_the_rigorous_one():
    for name in ("residual", "max pool", "batch norm 2d", "gelu"):
        _, bounded = traced(name)
        graph, x = build_graph(bounded).to(torch.float64), ROWS[name].inputs(2)
        values = graph.values(x.double())
        rigorous = difference(graph, {k: (v, v) for k, v in values.items()}, torch.float32)[graph.output].detach()
        rows = torch.eye(3)[:2]
        found = first_order(graph, x, rows, torch.float32)
        assert (found > 0).all() and (found <= rigorous.diagonal() * 1.01).all(), name


def test_terms():
    dense, conv = DenseMap(torch.ones(3, 5)), ConvMap(torch.ones(4, 2, 3, 3), (4, 6, 6), groups=2)
    assert terms(dense) == 5 and terms(conv) == 18 and terms(ReshapeMap((4,), (2, 2))) == 0
    assert terms(ConvTransposeMap(torch.ones(4, 3, 2, 2), (4, 5, 5))) == 16
    assert terms(DiagonalMap(torch.ones(3), (3,))) == 1
    assert terms(ComposedMap([DiagonalMap(torch.ones(3), (3,)), dense])) == 6
    assert terms(SumMap([dense, dense])) == 11 and terms(IdentityMap((3,))) == 0
