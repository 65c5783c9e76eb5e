"""No bound is served of a graph that is not the model: mistraced, stale, or from a wrong rule."""

from __future__ import annotations

import pytest
import torch
from networks.operators import ROWS, Call, around, traced
from sampling import assert_sound
from torch import nn
from torch.nn import functional as F

import lirpa_lip.network.adapters.table as table
from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import ConfigError, LirpaLipError, ShapeError, TraceMismatchError, TrainingModeError
from lirpa_lip.losses.local_bound import LocalBound
from lirpa_lip.network.graph import build_graph
from lirpa_lip.norms.linear_map import DenseMap
from lirpa_lip.trust.gate import check_graph

OURS = ("local-lip", "sdp-crown", "local-lip-crown")
CONSTANTS = ("local-lip", "local-lip-crown", "clarke-jacobian", "recurjac", "fastlip", "naive")


def ball(x, eps=0.05, norm=2, **box):
    return (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps, **box)),)


def calls(bounded, x):
    for method in (*OURS, "IBP", "CROWN"):
        yield lambda method=method: bounded.compute_bounds(x=ball(x), method=method)
    for method in CONSTANTS:
        yield lambda method=method: bounded.local_lipschitz(x=ball(x), method=method)


def net(*layers) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.ReLU(), nn.Linear(6, 3)).eval()


X = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))


def wrong_linear(builder, traced):
    """The weight taken for its transpose, as ONNX's default misread once was."""
    weight, bias = traced.constant(1), traced.constant(2)
    weight = weight.mT if weight.shape[0] == weight.shape[1] else weight
    return builder.affine(traced.name, traced.operator, [traced.parent], [DenseMap(weight)], bias.reshape(1, -1))


def test_a_wrong_rule_is_refused_at_wrapping_and_named(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    BoundedModule(model, X)
    monkeypatch.setitem(table.ADAPTERS, "BoundLinear", wrong_linear)
    with pytest.raises(TraceMismatchError, match="BoundLinear") as caught:
        BoundedModule(model, torch.empty_like(X))
    assert caught.value.node and abs(caught.value.found - caught.value.expected) > caught.value.tolerance


def test_a_wrong_rule_is_refused_at_every_call(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    bounded = BoundedModule(model, X)
    monkeypatch.setitem(table.ADAPTERS, "BoundLinear", wrong_linear)
    for method in ("local-lip", "sdp-crown"):
        with pytest.raises(TraceMismatchError, match="BoundLinear"):
            bounded.compute_bounds(x=ball(X), method=method)
    for method in CONSTANTS:
        with pytest.raises(TraceMismatchError):
            bounded.local_lipschitz(x=ball(X), method=method)


class Scaled(nn.Module):
    """A number, a plain tensor and a buffer that is not saved: all of them become constants of a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.factor, self.shift = net(), 1.0, torch.zeros(3)
        self.register_buffer("unsaved", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.body(x) * self.factor * self.unsaved + self.shift


@pytest.mark.parametrize("what", ["factor", "shift", "shift in place", "unsaved", "submodule"])
def test_what_is_baked_into_the_trace_may_not_change(what):
    model = Scaled().eval()
    bounded = BoundedModule(model, X)
    if what == "factor":
        model.factor = 1.01
    elif what == "shift":
        model.shift = torch.full((3,), 0.01)
    elif what == "shift in place":
        model.shift += 0.01
    elif what == "unsaved":
        model.unsaved.mul_(1.001)
    else:
        model.body[1] = nn.Tanh()
    in_place = what in ("shift in place", "unsaved")  # a trace holds the tensor itself: it may notice
    for call in calls(bounded, X):
        try:
            found = call()
        except (TraceMismatchError, ConfigError) as error:
            assert "rap" in str(error)
            continue
        assert in_place
        if isinstance(found, tuple):
            assert ((found[0] <= model(X)) & (model(X) <= found[1])).all()


CHANGES = {
    "load_state_dict": lambda m: m.load_state_dict({k: v * 1.3 + 0.2 for k, v in m.state_dict().items()}),
    "statistics in place": lambda m: m[1].running_mean.add_(0.5),
    "training on": lambda m: (m.train()(X + 3), m.eval()),
    "buffer replaced": lambda m: setattr(m[1], "running_var", torch.full((6,), 3.0)),
    "parameter replaced": lambda m: setattr(m[0], "weight", nn.Parameter(torch.randn(6, 4))),
    "parameter in place": lambda m: m[3].weight.data.mul_(-2),
    "optimiser": lambda m: [p.data.sub_(0.1) for p in m.parameters()],
}


@pytest.mark.parametrize("change", CHANGES)
def test_bounds_are_of_the_model_as_it_is_now(change):
    model = net(nn.BatchNorm1d(6))
    bounded = BoundedModule(model, X)
    with torch.no_grad():
        CHANGES[change](model)
        value, c = model(X), torch.eye(3).expand(2, -1, -1)
        for method in (*OURS, "IBP", "CROWN"):
            lower, upper = bounded.compute_bounds(x=ball(X), method=method)
            assert (lower <= value).all() and (value <= upper).all(), method
            assert_sound(model, X, 0.05, c, lower, upper, count=20)
    fresh = BoundedModule(model, X).local_lipschitz(x=ball(X), method="recurjac").upper
    torch.testing.assert_close(bounded.local_lipschitz(x=ball(X), method="recurjac").upper, fresh)


def test_the_case_of_a_reloaded_batch_norm():
    """Its constant was 0.5 where the truth had become 5."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)).double().eval()
    nn.init.eye_(model[0].weight)
    bounded = BoundedModule(model, X.double())
    state = model.state_dict()
    state["1.running_var"] = torch.full((4,), 1e-2, dtype=torch.float64)
    model.load_state_dict(state)
    truth = (1e-2 + 1e-5) ** -0.5
    found = bounded.local_lipschitz(x=ball(X.double()))
    assert found.lower.min() <= truth * (1 + 1e-9) and found.upper.min() >= truth * (1 - 1e-9)


def test_shapes_and_names_that_changed():
    model = net(nn.BatchNorm1d(6))
    bounded = BoundedModule(model, X)
    model[3] = nn.Linear(6, 5)
    with pytest.raises(ConfigError, match="wrap the model again"):
        bounded.compute_bounds(x=ball(X), method="local-lip")
    model[3] = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(ConfigError, match="any more; wrap the model again"):
        bounded.compute_bounds(x=ball(X), method="IBP")


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    model = Tied()
    bounded = BoundedModule(model, X)
    model.one.weight = model.two.weight = nn.Parameter(torch.randn(4, 4))
    with torch.no_grad():
        lower, upper = bounded.compute_bounds(x=ball(X), method="local-lip")
        assert_sound(model, X, 0.05, torch.eye(4).expand(2, -1, -1), lower, upper, count=20)
    model.one.weight = nn.Parameter(torch.randn(4, 4))  # no longer one tensor: a trace cannot know
    try:
        lower, upper = bounded.compute_bounds(x=ball(X), method="local-lip")
        assert_sound(model, X, 0.05, torch.eye(4).expand(2, -1, -1), lower.detach(), upper.detach(), count=20)
    except TraceMismatchError as error:
        assert "Wrap" in str(error)


@pytest.mark.parametrize("convert", [lambda m: m.double(), lambda m: m.to(torch.float64)])
@pytest.mark.parametrize("which", ["model", "bounded"])
def test_precision_changed_on_either_side(convert, which):
    model = net(nn.BatchNorm1d(6))
    bounded = BoundedModule(model, X)
    convert(model if which == "model" else bounded)
    x = X.double()
    lower, upper = bounded.compute_bounds(x=ball(x), method="local-lip")
    assert lower.dtype == torch.float64 and model(x).dtype == torch.float64
    assert ((lower <= model(x)) & (model(x) <= upper)).all()
    with pytest.raises(LirpaLipError):
        bounded.compute_bounds(x=ball(X), method="CROWN")


def test_training_mode_is_looked_at_when_a_bound_is_asked_for():
    model = net(nn.BatchNorm1d(6))
    bounded = BoundedModule(model, X)
    model.train()
    with pytest.raises(TrainingModeError):
        bounded.compute_bounds(x=ball(X), method="local-lip")
    with pytest.raises(TrainingModeError):
        bounded.local_lipschitz(x=ball(X), method="naive")


def test_training_bound_reads_live_statistics():
    model = net(nn.BatchNorm1d(6))
    bound = LocalBound(model, X, iterations=50).eval()
    model.load_state_dict({k: v * 1.5 + 0.1 for k, v in model.state_dict().items()})
    fresh = LocalBound(model, X, iterations=50).eval()
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        now, then = bound(X, 0.1, labels).pair_lipschitz, fresh(X, 0.1, labels).pair_lipschitz
    torch.testing.assert_close(now, then, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_false_alarm(dtype):
    """Rounding never looks like a mismatch: every row of the operator table, several inputs."""
    for name, row in ROWS.items():
        _, bounded = traced(name, dtype)
        graph = build_graph(bounded).to(torch.float64)
        for seed in (5, 6):
            check_graph(bounded, graph, row.inputs(2, seed, dtype), 3 * row.inputs(2, seed + 10, dtype))


def test_a_deep_network_leaves_no_room_for_mistakes():
    """Rounding carried by |A| layer after layer would allow anything here; carried by derivatives it does not."""
    torch.manual_seed(0)
    layers = [m for _ in range(20) for m in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(nn.Linear(4, 64), *layers, nn.Linear(64, 3))
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    bounded = BoundedModule(model, X)
    check_graph(bounded, build_graph(bounded).to(torch.float64), X, -X)
    graph = build_graph(bounded).to(torch.float64)
    with torch.no_grad():
        model[-1].bias.add_(2e-2)
        with pytest.raises(TraceMismatchError):
            check_graph(bounded, graph, X, -X)


def test_what_a_call_costs():
    """One forward pass of the model, of the centres and as many random points."""
    model = net(nn.BatchNorm1d(6))
    bounded = BoundedModule(model, X)
    batches: list[int] = []
    model.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    for method in ("local-lip", "sdp-crown", "IBP", "CROWN"):
        batches.clear()
        bounded.compute_bounds(x=ball(X), method=method)
        assert batches == [4], method
    batches.clear()
    bounded.compute_bounds(x=ball(X), method="local-lip-crown")
    assert batches == [4]
    batches.clear()
    many = torch.rand(64, 4)
    lower, _ = bounded.compute_bounds(x=ball(many), method="IBP")
    lower.sum().backward()
    assert batches == [8]  # in a training step, a few samples of the batch


def test_graph_is_evaluated_once(monkeypatch):
    from lirpa_lip.network.graph import NetworkGraph

    model = net(nn.BatchNorm1d(6))
    bounded = BoundedModule(model, X)
    graph, count, values = build_graph(bounded).to(torch.float64), [], NetworkGraph.values
    monkeypatch.setattr(NetworkGraph, "values", lambda self, x: count.append(len(x)) or values(self, x))
    check_graph(bounded, graph, X, X + 0.01)
    assert count == [4]


@pytest.mark.parametrize("method", ["IBP", "CROWN", "CROWN-IBP", "forward"])
def test_a_failed_call_leaves_nothing_behind(method):
    model = net()
    bounded = BoundedModule(model, X)
    before = bounded.compute_bounds(x=ball(X), method="local-lip")
    for wrong in (torch.rand(2, 5), torch.rand(2, 3, 7), torch.rand(3)):
        with pytest.raises(Exception):  # noqa: B017
            bounded.compute_bounds(x=ball(wrong), method=method)
        after = bounded.compute_bounds(x=ball(X), method="local-lip")
        torch.testing.assert_close(before, after)
    assert bounded.compute_bounds(x=ball(X), method=method)[0].shape == (2, 3)
    with pytest.raises(ShapeError):
        bounded.compute_bounds(x=ball(torch.rand(2, 5)), method="local-lip")


def test_operators_of_auto_lirpa_alone_pass_a_gate_too():
    class Product(nn.Module):
        factor = 1.0

        def forward(self, x):
            return (x * torch.tanh(x)) * self.factor

    model = Product()
    bounded = BoundedModule(model, X)
    lower, upper = bounded.compute_bounds(x=ball(X), method="IBP")
    assert (lower <= model(X)).all() and (model(X) <= upper).all()
    model.factor = 1.1
    with pytest.raises(TraceMismatchError, match="Wrap"):
        bounded.compute_bounds(x=ball(X), method="IBP")


def test_dropped_attributes_are_caught():
    """Whatever an exporter drops: either the graph is right, or it is refused."""
    image = torch.rand(2, 2, 6, 6)
    for layer in (
        lambda x: F.avg_pool2d(x, 2, divisor_override=1),
        lambda x: F.avg_pool2d(x, 3, padding=1, divisor_override=5),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 2, padding="same", dilation=2),
        lambda x: torch.mm(x.flatten(1), torch.arange(80 * 80.0).reshape(80, 80) / 6400),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.softplus(x, beta=2, threshold=1),
        lambda x: x.half().float(),
    ):
        try:
            model = around(layer)()
            bounded = BoundedModule(model, image[:, :, :5, :4])
            lower, upper = bounded.compute_bounds(x=ball(image[:, :, :5, :4]), method="local-lip")
        except LirpaLipError:
            continue
        with torch.no_grad():
            c = torch.eye(lower.shape[1]).expand(2, -1, -1)
            assert_sound(model, image[:, :, :5, :4], 0.05, c, lower.detach(), upper.detach(), count=20)


def test_a_product_along_the_wrong_axis_never_passes():
    """x W for W = [[0, 1], [0, 0]] at (3, 5) is (0, 3), not (5, 0)."""
    weight = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    x = torch.tensor([[3.0, 5.0]])
    try:
        bounded = BoundedModule(Call(lambda t: torch.mm(t, weight)), x)
        lower, upper = bounded.compute_bounds(x=ball(x, 0.01), method="local-lip")
    except TraceMismatchError:
        return
    assert (lower <= torch.tensor([[0.0, 3.0]])).all() and (torch.tensor([[0.0, 3.0]]) <= upper).all()


def test_estimates_pass_the_gate_too():
    model = Scaled().eval()
    bounded = BoundedModule(model, X, bound_opts={"local_lip": LocalLipConfig(certificate="estimate")})
    bounded.compute_bounds(x=ball(X), method="local-lip")
    model.factor = 2.0
    with pytest.raises(TraceMismatchError):
        bounded.compute_bounds(x=ball(X), method="local-lip")
