"""The graph the bounds walk: the same function as the model, for every operator; and what it refuses."""

from __future__ import annotations

import pytest
import torch
from networks.operators import FLAT, IMAGE, REFUSED, ROWS, Call, Row, traced
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import NonFiniteError, ShapeError, TrainingModeError, UnsupportedOperatorError
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.network.graph import NetworkGraph, build_graph
from lirpa_lip.network.node import node_interval

EVERY_ROW = pytest.mark.parametrize("name", ROWS)


def graph_of(name: str, dtype: torch.dtype = torch.float32) -> tuple[NetworkGraph, nn.Module]:
    model, bounded = traced(name, dtype)
    return network_graph(bounded), model


@EVERY_ROW
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_values_are_the_models(name, dtype):
    graph, model = graph_of(name, dtype)
    row = ROWS[name]
    for batch in (2, 1, 5):  # wrapped with 2
        x = row.inputs(batch, seed=batch, dtype=dtype)
        with torch.no_grad():
            expected, values = model(x), graph.values(x)
        assert values[graph.output].shape == expected.shape
        tolerance = 1e-6 if dtype == torch.float32 else 1e-8  # a tracer keeps the ends of a clip in float32
        torch.testing.assert_close(values[graph.output], expected, rtol=10 * tolerance, atol=tolerance)
        assert all(value.shape == (batch, *graph[name].shape) for name, value in values.items())


@EVERY_ROW
def test_maps_are_linear_with_true_adjoints_and_absolutes(name):
    graph, _ = graph_of(name, torch.float64)
    generator = torch.Generator().manual_seed(0)

    def draw(shape):
        return torch.randn(3, *shape, generator=generator, dtype=torch.float64)

    for node in graph:
        if node.maps is None:
            continue
        for map_, parent in zip(node.maps, node.parents, strict=True):
            assert map_.in_shape == graph[parent].shape and map_.out_shape == node.shape
            x, other, y = draw(map_.in_shape), draw(map_.in_shape), draw(map_.out_shape)
            forward = map_.forward(x)
            torch.testing.assert_close(
                (forward * y).flatten(1).sum(1), (x * map_.adjoint(y)).flatten(1).sum(1), rtol=1e-9, atol=1e-9
            )
            torch.testing.assert_close(map_.forward(2 * x - other), 2 * forward - map_.forward(other))
            absolute = map_.abs()
            assert (absolute.forward(x.abs()) >= forward.abs() - 1e-12).all()
            if map_.in_shape.numel() * map_.out_shape.numel() <= 20000:
                torch.testing.assert_close(absolute.dense(), map_.dense().abs())


@EVERY_ROW
def test_intervals_hold_the_values(name):
    graph, _ = graph_of(name, torch.float64)
    x = ROWS[name].inputs(2, dtype=torch.float64)
    intervals = {graph.input: (x - 0.2, x + 0.2)}
    for node in list(graph)[1:]:
        intervals[node.name] = node_interval(node, intervals)
    for point in (x, x + 0.2, x - 0.2, *(x + 0.2 * (2 * torch.rand(20, *x.shape, dtype=x.dtype) - 1))):
        for name, value in graph.values(point).items():
            low, high = intervals[name]
            assert (low <= value + 1e-9).all() and (value <= high + 1e-9).all(), name


@EVERY_ROW
def test_other_precision(name):
    graph, model = graph_of(name)
    x = ROWS[name].inputs(2)
    values = graph.to(torch.float64).values(x.double())[graph.output]
    assert values.dtype == torch.float64
    torch.testing.assert_close(values.float(), model(x), rtol=1e-5, atol=1e-6)


def test_sources_and_ancestors():
    graph, _ = graph_of("shared sub-graph")
    trunk, left, right = (node.name for node in graph.activations)
    assert graph.sources(graph.output) == [trunk, left, right]
    assert graph.sources(graph[left].parents[0]) == [trunk]
    assert graph.sources(graph[trunk].parents[0]) == [graph.input]
    assert graph.sources(trunk) == [trunk]
    assert graph.ancestors(graph.output) == list(graph.nodes)
    assert right not in graph.ancestors(left) and trunk in graph.ancestors(left)
    seen: set[str] = set()
    for node in graph:
        assert set(node.parents) <= seen
        seen.add(node.name)


def test_a_residual_network_reads_its_input_on_two_paths():
    graph, _ = graph_of("residual")
    assert graph.input in graph.sources(graph.output)
    adds = [node for node in graph if node.operator == "BoundAdd"]
    assert all(len(node.parents) == 2 for node in adds)


def test_parameters_are_the_models_own():
    model = Row(lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU(4), nn.Linear(4, 2)), FLAT).model()
    graph = network_graph(BoundedModule(model, torch.zeros(2, 6)))
    found = graph.parameters()
    total = graph.values(torch.randn(3, 6))[graph.output].sum()
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
    assert {p.data_ptr() for p in model.parameters()} <= {t.data_ptr() for t in found}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_with_a_reason(name):
    build, shape, word = REFUSED[name]
    x = torch.rand(2, *shape)
    with pytest.raises(UnsupportedOperatorError) as error:
        bounded = BoundedModule(build().eval(), x)
        bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),), method="local-lip")
    assert word in str(error.value)
    assert error.value.node and error.value.operator
    assert "supported are" in str(error.value) or "rule" in str(error.value)


def test_training_mode_is_refused():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    x = torch.rand(3, 6)
    with pytest.raises(TrainingModeError, match="eval"):
        ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1))
        BoundedModule(model, x).compute_bounds(x=(ball,), method="local-lip")
    bounded = BoundedModule(model.eval(), x)
    network_graph(bounded)
    bounded.train()
    with pytest.raises(TrainingModeError, match="BatchNorm"):
        network_graph(bounded)


def test_wrong_input_shape():
    graph, _ = graph_of("linear")
    with pytest.raises(ShapeError, match="expected"):
        graph.values(torch.zeros(2, 5))


def test_values_without_an_axis_beside_the_batch():
    x = torch.rand(2, 6)
    with pytest.raises(ShapeError, match="keepdim"):
        build_graph(BoundedModule(Call(lambda x: torch.relu(x).sum(1)), x))


def test_moved_batch_axis():
    x = torch.rand(2, *IMAGE)
    with pytest.raises((UnsupportedOperatorError, ShapeError), match="batch axis"):
        build_graph(BoundedModule(Call(lambda x: x.transpose(0, 1).relu().transpose(0, 1)), x))


def test_non_finite_parameters():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    bounded = BoundedModule(model, torch.zeros(1, 6))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="BoundLinear"):
        network_graph(bounded)


def test_a_constant_output():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(1, 2))

        def forward(self, x):
            return 2 * self.value

    with pytest.raises((UnsupportedOperatorError, AssertionError, RuntimeError)):
        build_graph(BoundedModule(Constant(), torch.zeros(1, 6)))
