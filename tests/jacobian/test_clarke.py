"""Jacobian bounds: sound against sampled and attacked Jacobians, ordered, closed at kinks, and right by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.small import Residual, networks
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.activations import smooth_functions as smooth
from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.activations.kinked_functions import clip, leaky_relu, relu
from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm as Ball
from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError, UnknownMethodError, UnsupportedNormError
from lirpa_lip.jacobian.backward import backward_bounds
from lirpa_lip.jacobian.constants import METHODS
from lirpa_lip.jacobian.forward import forward_bounds
from lirpa_lip.jacobian.mean_value import mean_value_bounds
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.jacobian.products import INTERVAL, TIGHT, products
from lirpa_lip.regions.region import Region
from lirpa_lip.search.bounds import prepare_region
from lirpa_lip.search.constants import clarke_lipschitz

NORMS = (math.inf, 2, 1)


def autograd_jacobians(net, points):
    """``(count, outputs, inputs)`` by automatic differentiation, which shares no code with the bounds."""
    rows = []
    for point in points:
        jacobian = torch.autograd.functional.jacobian(lambda x: net(x.unsqueeze(0)).flatten(), point)
        rows.append(jacobian.flatten(1))
    return torch.stack(rows)


def exact_norms(jacobians, norm):
    """Rows' constants and the matrix norm at each point."""
    if norm == math.inf:
        rows = jacobians.abs().sum(-1)
        return rows, rows.amax(-1)
    if norm == 1:
        return jacobians.abs().amax(-1), jacobians.abs().sum(1).amax(-1)
    return jacobians.norm(dim=-1), torch.linalg.matrix_norm(jacobians, 2)


def region_points(inputs: Region, count: int):
    """Random points of a region of one sample, and its corners as far as they are few."""
    return inputs.sample(count, torch.Generator().manual_seed(7))[0]


def check_sound(net, x, region, norm, method="clarke-jacobian", count=60, **options):
    bounded = BoundedModule(net, torch.empty_like(x))
    _, inputs, _ = prepare_region(bounded, (BoundedTensor(x, region),))
    jacobians = autograd_jacobians(net, region_points(inputs, count))
    rows, whole = exact_norms(jacobians, norm)
    outputs = torch.eye(rows.shape[1], dtype=x.dtype)
    for c, seen in ((outputs, rows.amax(0)), (None, whole.amax(0, keepdim=True))):
        result = bounded.local_lipschitz((BoundedTensor(x, region),), C=c, method=method, norm=norm, **options)
        slack = 1e-9 * (1 + seen)
        assert (result.upper.flatten() >= seen - slack).all()
        assert (result.lower <= result.upper * (1 + 1e-9)).all()
        entries = result.details["entries"]
        if entries is not None:
            low, high = (t.flatten(2)[0] for t in entries)
            assert (jacobians.amin(0) >= low - 1e-9).all() and (jacobians.amax(0) <= high + 1e-9).all()
    return result


@pytest.mark.parametrize("name", sorted(networks()))
def test_no_sampled_jacobian_exceeds_the_bound(name):
    net, shape = networks()[name]
    x = torch.rand(1, *shape, dtype=torch.float64)
    check_sound(net, x, PerturbationLpNorm(eps=0.1), math.inf)
    check_sound(net, x, PerturbationLpNorm(norm=2, eps=0.3), 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_norm_is_sound_on_a_residual_network(method, norm):
    net = Residual().double().eval()
    check_sound(net, torch.rand(1, 2, 5, 5, dtype=torch.float64), PerturbationLpNorm(eps=0.05), norm, method, count=25)


def test_batch_norm_pooling_and_leaky_relu_with_smooth_activations():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.SiLU(),
        nn.Linear(3, 2),
    ).double()
    net(torch.rand(16, 1, 8, 8, dtype=torch.float64))
    check_sound(net.eval(), torch.rand(1, 1, 8, 8, dtype=torch.float64), PerturbationLpNorm(eps=0.1), math.inf)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    eps=st.sampled_from([0.0, 0.01, 0.3, 2.0]),
    norm=st.sampled_from(NORMS),
    kind=st.sampled_from(["relu", "leaky", "tanh", "hardtanh", "skip"]),
    ball=st.booleans(),
)
def test_random_graphs_are_bounded_soundly_and_in_order(seed, sizes, eps, norm, kind, ball):
    torch.manual_seed(seed)
    net = RandomNet([*sizes, 3], kind).double().eval()
    x = torch.randn(1, sizes[0], dtype=torch.float64)
    result = check_sound(net, x, PerturbationLpNorm(norm=2 if ball else math.inf, eps=eps), norm, count=40)
    values = [result.details["bounds"][m] for m in METHODS]
    assert all((a >= b).all() for a, b in zip(values[:-1], values[1:]))


class RandomNet(nn.Module):
    """Linear layers and activations; ``skip`` adds the input's image to every hidden layer."""

    def __init__(self, sizes, kind):
        super().__init__()
        make = {
            "relu": nn.ReLU,
            "leaky": lambda: nn.LeakyReLU(0.3),
            "tanh": nn.Tanh,
            "hardtanh": nn.Hardtanh,
            "skip": nn.ReLU,
        }
        self.act, self.skip = make[kind](), kind == "skip"
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:]))
        self.short = nn.ModuleList(nn.Linear(sizes[0], b) for b in sizes[1:])

    def forward(self, x):
        h = x
        for k, (layer, short) in enumerate(zip(self.layers, self.short)):
            h = layer(h) + short(x) if self.skip else layer(h)
            h = self.act(h) if k < len(self.layers) - 1 else h
        return h


def weak_to_strong(net, x, eps, norm, c=None):
    bounded = BoundedModule(net, torch.empty_like(x))
    region = (BoundedTensor(x, PerturbationLpNorm(eps=eps)),)
    return [bounded.local_lipschitz(region, C=c, method=m, norm=norm).upper for m in METHODS]


@pytest.mark.parametrize("norm", NORMS)
def test_each_method_is_at_least_as_tight_as_the_weaker_ones(norm):
    torch.manual_seed(3)
    net = RandomNet([6, 20, 20, 4], "relu")
    x = torch.rand(3, 6)
    for c in (None, torch.eye(4)):
        uppers = weak_to_strong(net, x, 0.3, norm, c)
        assert all((a >= b).all() for a, b in zip(uppers[:-1], uppers[1:]))
        # and there is something to gain from the tight relaxation
        assert (uppers[2] > uppers[3]).any() and (uppers[0] > uppers[3]).all()


def test_by_hand_one_neuron():
    """f(x) = 3 relu(2x − 1) has slope 0 or 6."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    for layer, weight, bias in ((net[0], 2.0, -1.0), (net[2], 3.0, 5.0)):
        nn.init.constant_(layer.weight, weight), nn.init.constant_(layer.bias, bias)
    bounded = BoundedModule(net, torch.zeros(1, 1, dtype=torch.float64))
    for centre, eps, expected in ((0.0, 0.2, 0.0), (1.0, 0.2, 6.0), (0.4, 0.2, 6.0)):
        x = BoundedTensor(torch.tensor([[centre]], dtype=torch.float64), PerturbationLpNorm(eps=eps))
        upper = bounded.local_lipschitz((x,), method="clarke-jacobian", norm=math.inf).upper
        assert float(upper) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("ends", [(-1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_a_kink_exactly_at_the_end_of_the_region_counts_both_slopes(ends):
    """relu on [−1, 0], [0, 1] and {0}: the Clarke derivative at 0 is [0, 1]; 2 relu(x) − 2x takes it to −2 … 0."""
    slopes = relu().clarke_range(*(torch.tensor([[e]]) for e in (*ends, -math.inf, math.inf)))
    assert (slopes.low, slopes.high) == (0.0, 1.0)

    class Net(nn.Module):
        def forward(self, x):
            return 2 * torch.relu(x) - 2 * x

    x = torch.tensor([[sum(ends) / 2]], dtype=torch.float64)
    low, high = (torch.tensor([[e]], dtype=torch.float64) for e in ends)
    bounded = BoundedModule(Net(), x)
    for options in ({}, {"time_limit": 5.0}):
        result = bounded.local_lipschitz(
            (BoundedTensor(x, PerturbationLpNorm(x_L=low, x_U=high)),),
            method="clarke-jacobian",
            norm=math.inf,
            **options,
        )
        assert float(result.upper) == pytest.approx(2.0, abs=1e-9)


def test_a_split_at_a_kink_keeps_one_slope_on_each_side():
    zero, inf = torch.zeros(1, 1), torch.full((1, 1), math.inf)
    above = relu().clarke_range(zero, zero + 1, zero, inf)
    below = relu().clarke_range(zero - 1, zero, -inf, zero)
    assert (above.low, above.high, below.low, below.high) == (1.0, 1.0, 0.0, 0.0)
    pieces = clip(-1.0, 1.0).clarke_range(zero - 1, zero + 2, zero - 1, inf)
    assert (pieces.low, pieces.high) == (0.0, 1.0)
    assert clip(-1.0, 1.0).clarke_range(zero - 1, zero, zero - 1, zero).low == 1.0


def test_lower_bounds_ignore_choices_of_slope_at_kinks_that_no_nearby_point_has():
    """Both functions are 0 everywhere; slopes at x = 0 chosen neuron by neuron, 0 or 1/2 each, make derivatives 1 and
    −1/4."""

    class Zero(nn.Module):
        def __init__(self, nested):
            super().__init__()
            self.nested = nested

        def forward(self, x):
            if self.nested:
                return torch.relu(torch.relu(x)) - torch.relu(x)
            return x - torch.relu(x) + torch.relu(-x)

    x = torch.zeros(1, 1, dtype=torch.float64)
    for net in (Zero(False), Zero(True)):
        bounded = BoundedModule(net, x)
        for eps in (0.0, 1e-13, 0.5):
            region = (BoundedTensor(x, PerturbationLpNorm(eps=eps)),)
            result = bounded.local_lipschitz(region, method="clarke-jacobian", norm=2)
            assert float(result.lower) == 0 and float(result.upper) >= 0


@pytest.mark.parametrize("form", [TIGHT, INTERVAL])
def test_products_of_a_slope_and_a_cotangent_lie_between_their_lines(form):
    low, high = torch.rand(1, 50).double() - 0.5, torch.rand(1, 50).double()
    slopes = SlopeRange(low, low + high)
    left = torch.randn(1, 3, 50).double()
    right = left + torch.rand(1, 3, 50).double() * 2
    relaxed = products(slopes, left, right, form)
    for a in torch.linspace(0, 1, 11).double():
        for b in torch.linspace(0, 1, 11).double():
            s, g = low + a * high, left + b * (right - left)
            assert (relaxed.low_slope * g + relaxed.low_offset <= s * g + 1e-12).all()
            assert (relaxed.high_slope * g + relaxed.high_offset >= s * g - 1e-12).all()


@pytest.mark.parametrize(
    "f", [relu(), leaky_relu(0.2), clip(-0.5, 0.7), smooth.tanh(), smooth.silu(), smooth.gelu(), smooth.elu()]
)
def test_lines_enclose_the_activation(f):
    lower = torch.randn(1, 200, dtype=torch.float64)
    upper = lower + 3 * torch.rand(1, 200, dtype=torch.float64) * (torch.rand(1, 200) > 0.1)
    infinite = torch.full_like(lower, math.inf)
    line = f.lines(lower, upper, f.clarke_range(lower, upper, -infinite, infinite))
    for share in torch.linspace(0, 1, 101, dtype=torch.float64):
        z = lower + share * (upper - lower)
        assert (line.low_slope * z + line.low_offset <= f.value(z)).all()
        assert (line.high_slope * z + line.high_offset >= f.value(z)).all()


def test_pre_activation_bounds_hold_and_crown_is_tighter_than_intervals():
    net, shape = networks()["residual"]
    x = torch.rand(2, *shape, dtype=torch.float64)
    bounded = BoundedModule(net, x[:1])
    graph, inputs, _ = prepare_region(bounded, (BoundedTensor(x, PerturbationLpNorm(eps=0.3)),))
    tight, loose = (forward_bounds(graph, inputs, crown=c) for c in (True, False))
    points = inputs.sample(100)
    values = graph.values(points.flatten(0, 1))
    gained = 0.0
    for name, (low, high) in tight.intervals.items():
        seen = values[name].reshape(2, 100, *low.shape[1:])
        assert (seen >= low.unsqueeze(1)).all() and (seen <= high.unsqueeze(1)).all()
        gained += float((loose.intervals[name][1] - high).sum())
    assert gained > 0


def test_dead_networks_constant_regions_and_single_samples():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    nn.init.constant_(net[0].bias, -100.0)
    x = torch.rand(1, 3, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    region = (BoundedTensor(x, PerturbationLpNorm(eps=0.1)),)
    for norm in NORMS:
        assert float(bounded.local_lipschitz(region, method="clarke-jacobian", norm=norm).upper) <= 1e-9
    nn.init.constant_(net[0].bias, 100.0)
    bounded = BoundedModule(net, x)
    expected = torch.linalg.matrix_norm(net[2].weight @ net[0].weight, 2).detach()
    for eps in (0.0, 0.1):
        region = (BoundedTensor(x, PerturbationLpNorm(eps=eps)),)
        result = bounded.local_lipschitz(region, method="clarke-jacobian", norm=2)
        assert float(result.upper) == pytest.approx(float(expected), rel=1e-6)
        assert float(result.lower) == pytest.approx(float(expected), rel=1e-6)
        assert int(result.stable) == 4


def test_regions_are_read_as_they_are_meant():
    net = RandomNet([4, 8, 2], "relu").double()
    x = torch.rand(2, 4, dtype=torch.float64)
    bounded = BoundedModule(net, x[:1])

    def box(**region):
        return prepare_region(bounded, (BoundedTensor(x, Ball(**region)),))[1]

    per_sample = box(eps=torch.tensor([0.1, 0.4], dtype=torch.float64))
    assert torch.allclose(
        per_sample.high - per_sample.low, torch.tensor([[0.2], [0.8]], dtype=torch.float64).expand(2, 4)
    )
    wide = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64)
    features = box(x_L=x - wide, x_U=x + wide)
    assert torch.allclose(features.high - features.low, 2 * wide.expand(2, 4))
    cut = box(norm=2, eps=0.5, x_L=x.new_zeros(4), x_U=x.new_ones(4))
    assert cut.low.min() >= 0 and cut.high.max() <= 1 and cut.radius.tolist() == [0.5, 0.5]


def test_smaller_regions_give_smaller_constants():
    net = RandomNet([5, 16, 16, 3], "relu")
    x = torch.rand(1, 5)
    bounded = BoundedModule(net, x)
    uppers = [
        float(
            bounded.local_lipschitz(
                (BoundedTensor(x, PerturbationLpNorm(eps=e)),), method="clarke-jacobian", norm=1
            ).upper
        )
        for e in (0.01, 0.1, 0.5, 2.0)
    ]
    assert uppers == sorted(uppers)


def test_support_of_a_region_is_an_upper_bound_and_sharp_on_boxes():
    low, high = -torch.rand(2, 6, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64)
    box = Region.box(torch.zeros(2, 6, dtype=torch.float64), low, high)
    ball = Region.make(torch.zeros(2, 6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64), low, high)
    rows = torch.randn(2, 5, 6, dtype=torch.float64)
    for inputs in (box, ball):
        points = inputs.sample(500)
        if inputs.radius is not None:
            assert (points.norm(dim=-1) <= 0.4).all()
        assert ((points >= low.unsqueeze(1)) & (points <= high.unsqueeze(1))).all()
        reached = torch.einsum("brn,bpn->brp", rows, points).amax(-1)
        assert (inputs.maximum(rows) >= reached).all()
    corners = torch.where(rows > 0, high.unsqueeze(1), low.unsqueeze(1))
    assert torch.allclose(box.maximum(rows), (rows * corners).sum(-1))
    assert not bool(ball.empty.any())
    assert bool(ball.within(torch.full_like(low, 0.35), high + 1).empty.all())


def test_pushing_fewer_entries_stays_valid():
    net = RandomNet([6, 20, 20, 3], "relu").double()
    x = torch.rand(1, 6, dtype=torch.float64)
    for entries in (0, 1, 100):
        check_sound(net, x, PerturbationLpNorm(eps=0.5), 2, entries=entries)


def test_wrong_arguments_say_what_to_do():
    net = RandomNet([3, 4, 2], "relu")
    x = torch.rand(1, 3)
    bounded = BoundedModule(net, x)
    region = (BoundedTensor(x, PerturbationLpNorm(eps=0.1)),)
    with pytest.raises(UnsupportedNormError, match="norm=3"):
        bounded.local_lipschitz(region, method="clarke-jacobian", norm=3)
    with pytest.raises(UnknownMethodError, match="intermediate"):
        bounded.local_lipschitz(region, method="clarke-jacobian", norm=2, intermediate="magic")
    with pytest.raises(UnknownMethodError, match="time_limit"):
        bounded.local_lipschitz(region, method="clarke-jacobian", norm=2, timelimit=3)
    with pytest.raises(ConfigError, match="batch"):
        bounded.local_lipschitz(region, method="clarke-jacobian", norm=2, batch=0)
    with pytest.raises(UnsupportedNormError, match="region"):
        bounded.local_lipschitz((BoundedTensor(x, PerturbationLpNorm(norm=1, eps=0.1)),), method="naive", norm=2)
    with pytest.raises(ShapeError, match="BoundedTensor"):
        bounded.local_lipschitz((x,), method="naive", norm=2)
    with pytest.raises(ConfigError, match="outside"):
        bounded.local_lipschitz((BoundedTensor(x, PerturbationLpNorm(x_L=x + 1, x_U=x + 2)),), method="naive", norm=2)
    with pytest.raises(NonFiniteError):
        Region.box(x, x - math.inf, x)


def test_intermediate_bounds_trade_time_for_tightness():
    torch.manual_seed(1)
    net = RandomNet([6, 24, 24, 3], "relu")
    x = torch.rand(1, 6)
    bounded = BoundedModule(net, x)
    region = (BoundedTensor(x, PerturbationLpNorm(eps=0.4)),)
    uppers = {
        kind: float(bounded.local_lipschitz(region, method="clarke-jacobian", norm=math.inf, intermediate=kind).upper)
        for kind in ("ibp", "crown", "alpha-crown")
    }
    assert uppers["crown"] < uppers["ibp"] and uppers["alpha-crown"] <= uppers["crown"] * (1 + 1e-9)


def test_entries_without_pushes_are_wider():
    net, shape = networks()["conv-relu"]
    x = torch.rand(1, *shape, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    graph, inputs, _ = prepare_region(bounded, (BoundedTensor(x, PerturbationLpNorm(eps=0.3)),))
    seed = torch.eye(4, dtype=torch.float64).unsqueeze(0)
    slopes = forward_bounds(graph, inputs).slopes
    plain = backward_bounds(graph, slopes, seed, pushes=False).cotangents[graph.input]
    pushed = backward_bounds(graph, slopes, seed, entries=1000).cotangents[graph.input]
    assert ((pushed[1] - pushed[0]) <= (plain[1] - plain[0]) + 1e-9).all()
    assert ((pushed[1] - pushed[0]).sum()) < 0.9 * (plain[1] - plain[0]).sum()


def test_the_call_without_a_wrapped_model():
    net = RandomNet([4, 6, 2], "relu").double()
    graph, inputs, _ = prepare_region(
        BoundedModule(net, torch.zeros(1, 4, dtype=torch.float64)),
        BoundedTensor(torch.rand(2, 4, dtype=torch.float64), PerturbationLpNorm(eps=0.1)),
    )
    seed = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    upper, lower, details = clarke_lipschitz(graph, inputs, seed, whole=False, options=ClarkeOptions(steps=0))
    assert upper.shape == lower.shape == (2, 2) and (lower <= upper).all()
    assert list(details["bounds"]) == list(METHODS)


@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("name", ["residual", "clipped-maxmin", "mlp-tanh"])
def test_mean_value_bounds_hold_all_sampled_outputs(name, norm):
    net, shape = networks()[name]
    x = torch.rand(2, *shape, dtype=torch.float64)
    graph, inputs, _ = prepare_region(
        BoundedModule(net, x[:1]), BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=0.2))
    )
    outputs = graph[graph.output].shape.numel()
    seed = torch.eye(outputs, dtype=torch.float64).expand(2, -1, -1)
    low, high = mean_value_bounds(graph, inputs, seed)
    seen = net(inputs.sample(200).flatten(0, 1)).reshape(2, 200, -1)
    assert (seen >= low.unsqueeze(1)).all() and (seen <= high.unsqueeze(1)).all()
    loose = mean_value_bounds(graph, inputs, seed, method="fastlip")
    assert (low >= loose[0] - 1e-9).all() and (high <= loose[1] + 1e-9).all()


def _constants(model: nn.Module, x: torch.Tensor, method: str, norm: float = 2, **region):
    bounded = BoundedModule(model.eval(), x)
    ball = BoundedTensor(x, PerturbationLpNorm(norm=norm, **region))
    return bounded.local_lipschitz(x=(ball,), method=method, norm=norm)


@pytest.mark.parametrize("method", ["clarke-jacobian", "recurjac", "local-lip", "local-lip-crown"])
def test_lower_bounds_at_a_kink_stay_below_the_constant(method):
    found = _constants(nn.Sequential(nn.LeakyReLU(0.2)), torch.zeros(1, 1), method, eps=0.1)
    assert found.lower <= 1 <= found.upper


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("norm", [2, torch.inf])
def test_coordinates_without_width_do_not_count_in_lower_bounds(norm, limit):
    """f = x + 100 y on a region in which y is fixed: two of its points differ by x alone."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 100.0]]))
    low, high = torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 0.5]])
    bounded = BoundedModule(model, low)
    x = BoundedTensor(torch.tensor([[0.3, 0.5]]), PerturbationLpNorm(norm=norm, eps=0.1, x_L=low, x_U=high))
    found = bounded.local_lipschitz(x=(x,), method="clarke-jacobian", norm=norm, time_limit=limit)
    assert 1 - 1e-6 < found.lower.item() <= 1 <= found.upper.item()
    if norm == 2:
        found = bounded.local_lipschitz(x=(x,), method="local-lip")
        assert 1 - 1e-6 < found.lower.item() <= 1 <= found.upper.item()


def test_lower_bounds_through_windows_that_repeat_a_pixel():
    """A pixel that meets itself in a padded, overlapping window is no kink; differences of values are the oracle."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Flatten(), nn.Linear(16, 1)), torch.rand(1, 1, 4, 4)
    found = _constants(model, x, "clarke-jacobian", eps=0.1)
    steps = torch.randn(200, 1, 4, 4)
    steps = 0.1 * steps / steps.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        seen = (model(x + steps) - model(x - steps)).abs().max() / 0.2
    assert seen > 0.1 and seen * 0.5 <= found.lower.item() <= found.upper.item()
