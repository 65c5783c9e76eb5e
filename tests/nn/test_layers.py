"""The three layers as ordinary torch modules: values, derivatives of both orders, shapes, saving, tracing, errors."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from lirpa_lip.errors import ConfigError, ShapeError
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin
from lirpa_lip.nn.functional import _traced_operator, clipped_relu, non_negative

LAYERS = {
    "relu-neuron": (lambda: ClippedReLU((4, 3, 2), 0.7), (4, 3, 2)),
    "relu-channel": (lambda: ClippedReLU(4, 0.7), (4, 3, 2)),
    "relu-channel-3d": (lambda: ClippedReLU((4, 1, 1), 0.7), (4, 3, 2)),
    "relu-flat": (lambda: ClippedReLU((6,), 0.7), (6,)),
    "maxmin": (MaxMin, (4, 3, 2)),
    "maxmin-flat": (MaxMin, (6,)),
    "clipped-neuron": (lambda: ClippedMaxMin((4, 3, 2), 0.3, -0.2), (4, 3, 2)),
    "clipped-channel": (lambda: ClippedMaxMin(4, 0.3, -0.2), (4, 3, 2)),
    "clipped-channel-3d": (lambda: ClippedMaxMin((4, 1, 1), 0.3, -0.2), (4, 3, 2)),
    "clipped-crossed": (lambda: ClippedMaxMin(6, -0.4, 0.4), (6,)),
}


@pytest.fixture(params=LAYERS, ids=LAYERS)
def layer_and_input(request):
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    layer = make().double()
    with torch.no_grad():  # thresholds that all differ, so that a wrong broadcast cannot hide
        for p in layer.parameters():
            p += 0.3 * torch.rand_like(p)
    return layer, torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)


def per_neuron(limit: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return limit.detach().reshape(*limit.shape, *(1,) * (len(shape) - limit.dim())).expand(shape)


def expected(layer: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """The formulas, neuron by neuron in Python."""
    out = torch.empty_like(z)
    half = z.shape[1] // 2
    for b, c, *rest in torch.cartesian_prod(*[torch.arange(n) for n in z.shape]).tolist():
        here = (b, c, *rest)
        if isinstance(layer, ClippedReLU):
            theta = per_neuron(layer.raw_threshold, z.shape[1:])[here[1:]].item()
            out[here] = min(max(z[here].item(), 0.0), max(theta, 0.0))
            continue
        partner = z[(b, (c + half) % (2 * half), *rest)].item()
        value = max(z[here].item(), partner) if c < half else min(z[here].item(), partner)
        if isinstance(layer, ClippedMaxMin):
            limit = layer.max_threshold if c < half else layer.min_threshold
            limit = per_neuron(limit, (half, *z.shape[2:]))[(c % half, *rest)].item()
            value = min(value, limit) if c < half else max(value, limit)
        out[here] = value
    return out


def test_formula(layer_and_input):
    layer, z = layer_and_input
    assert torch.equal(layer(z), expected(layer, z.detach()))


def test_first_and_second_derivatives(layer_and_input):
    layer, z = layer_and_input
    names = [name for name, _ in layer.named_parameters()]

    def function(z, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (z,)).square()

    inputs = (z, *layer.parameters())
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_transforms(layer_and_input):
    layer, z = layer_and_input
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], z[0].detach())
    assert torch.allclose(torch.func.jacrev(lambda x: layer(x[None])[0])(z[0].detach()), jacobian)
    assert torch.allclose(torch.func.vmap(lambda x: layer(x[None])[0])(z.detach()), layer(z))
    assert torch.equal(torch.compile(layer, backend="eager")(z), layer(z))
    assert torch.equal(torch.export.export(layer, (z.detach(),)).module()(z), layer(z))


def test_is_one_lipschitz(layer_and_input):
    layer, z = layer_and_input
    other = torch.randn(200, *z.shape[1:], dtype=z.dtype) * 2
    base = torch.randn_like(other)
    moved = (layer(other) - layer(base)).flatten(1).norm(dim=1)
    assert (moved <= (other - base).flatten(1).norm(dim=1) * (1 + 1e-12)).all()


def test_trace_is_one_operator_with_the_parameters_as_inputs(layer_and_input):
    layer, z = layer_and_input
    graph, _ = torch.jit._get_trace_graph(nn.Sequential(nn.Identity(), layer), z)
    (node,) = [n for n in graph.nodes() if n.kind() == "prim::PythonOp"]
    assert len(list(node.inputs())) == 1 + len(list(layer.parameters()))
    traced = torch.jit.trace(layer, z)
    again = torch.randn_like(z)
    assert torch.equal(traced(again), layer(again))


def test_traced_operator_has_the_same_derivatives():
    torch.manual_seed(1)
    operator = _traced_operator("ClippedRelu", clipped_relu).apply
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    raw = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z, raw: operator(z, raw).square(), (z, raw))
    assert gradgradcheck(lambda z, raw: operator(z, raw).square(), (z, raw))
    assert gradgradcheck(lambda z: operator(z, raw.detach()).square(), (z,))


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_round_trip(name):
    make, shape = LAYERS[name]
    source, target = make(), make()
    with torch.no_grad():
        for p in source.parameters():
            p.add_(torch.rand_like(p))
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer))
    z = torch.randn(2, *shape)
    assert torch.equal(source(z), target(z))


def test_onnx_export_writes_the_custom_operators():
    pytest.importorskip("onnx")
    import onnx

    net = nn.Sequential(nn.Linear(4, 6), ClippedReLU(6), MaxMin(), ClippedMaxMin(6))
    buffer = io.BytesIO()
    torch.onnx.export(net, (torch.randn(2, 4),), buffer, dynamo=False, custom_opsets={"lirpa_lip": 1})
    kinds = [(n.domain, n.op_type) for n in onnx.load_from_string(buffer.getvalue()).graph.node]
    assert [k for k in kinds if k[0] == "lirpa_lip"] == [
        ("lirpa_lip", kind) for kind in ("ClippedRelu", "MaxMin", "ClippedMaxMin")
    ]


def test_not_learnable():
    for layer in (ClippedReLU(3, learnable=False), ClippedMaxMin(4, learnable=False)):
        assert not list(layer.parameters())
        assert layer.state_dict()
        assert "learnable=False" in repr(layer)


class TestThreshold:
    def test_effective_threshold_is_never_negative(self):
        layer = ClippedReLU(3)
        with torch.no_grad():
            layer.raw_threshold.copy_(torch.tensor([-2.0, 0.0, 2.0]))
        assert layer.threshold.tolist() == [0.0, 0.0, 2.0]
        assert layer(torch.full((1, 3), 5.0)).tolist() == [[0.0, 0.0, 2.0]]

    def test_gradient_is_exact_above_zero_and_only_raises_below(self):
        raw = torch.tensor([-1.0, -1.0, 0.0, 1.0], requires_grad=True)
        weight = torch.tensor([2.0, -2.0, 2.0, 2.0])
        (grad,) = torch.autograd.grad((non_negative(raw) * weight).sum(), raw)
        assert grad.tolist() == [0.0, -2.0, 2.0, 2.0]

    def test_threshold_below_zero_can_be_trained_back(self):
        layer = ClippedReLU(1)
        with torch.no_grad():
            layer.raw_threshold.fill_(-0.3)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(50):
            optimiser.zero_grad()
            (layer(torch.full((1, 1), 5.0)) - 1.0).square().sum().backward()
            optimiser.step()
        assert abs(layer.threshold.item() - 1.0) < 1e-2

    def test_dead_neuron_at_zero_threshold_sends_no_gradient(self):
        raw = torch.zeros(1, requires_grad=True)
        (grad,) = torch.autograd.grad(clipped_relu(torch.tensor([[-1.0]]), raw).sum(), raw)
        assert grad.item() == 0.0

    def test_nan_is_not_hidden(self):
        layer = ClippedReLU(2)
        assert layer(torch.tensor([[float("nan"), 1.0]])).isnan().tolist() == [[True, False]]
        with torch.no_grad():
            layer.raw_threshold[1] = float("nan")
        assert layer(torch.ones(1, 2)).isnan().tolist() == [[False, True]]


class TestErrors:
    @pytest.mark.parametrize("shape", [(1, 3), (1, 5, 4, 4), (7,)])
    def test_odd_channels(self, shape):
        with pytest.raises(ShapeError, match="even"):
            MaxMin()(torch.randn(shape))

    def test_odd_channels_of_the_clipped_layer(self):
        with pytest.raises(ShapeError, match="even"):
            ClippedMaxMin((3, 4, 4))
        with pytest.raises(ShapeError, match="even"):
            ClippedMaxMin(4)(torch.randn(1, 3))

    @pytest.mark.parametrize("layer", [ClippedReLU((4, 2, 2)), ClippedReLU(3), ClippedMaxMin(8)])
    def test_input_of_another_shape(self, layer):
        with pytest.raises(ShapeError, match="do not fit"):
            layer(torch.randn(2, 4, 3, 3))

    @pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), [1.0, 2.0]])
    def test_bad_threshold(self, value):
        with pytest.raises(ConfigError, match="threshold"):
            ClippedReLU(3, torch.tensor(value))

    def test_bad_clips(self):
        with pytest.raises(ConfigError, match="min_threshold must be finite"):
            ClippedMaxMin(4, 0.1, float("-inf"))

    @pytest.mark.parametrize("shape", [(), (0,), (4, -1)])
    def test_bad_shape(self, shape):
        with pytest.raises(ConfigError, match="shape"):
            ClippedReLU(shape)
