"""Products, quotients and softmax: what their parts compute and enclose, shifted scales, and errors at poles."""

from __future__ import annotations

import pytest
import torch
from networks.operators import Call
from sampling import ball_points
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.activations import curved
from lirpa_lip.errors import DomainError, LirpaLipError, UnsupportedOperatorError
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.network.adapters import products
from lirpa_lip.network.balance import balanced
from lirpa_lip.network.node import node_interval


class Pair(nn.Module):
    """A function of two halves of the input, the second at another scale."""

    def __init__(self, fn, scale: float = 1.0) -> None:
        super().__init__()
        self.fn, self.scale = fn, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x[:, :3], self.scale * x[:, 3:])


def wrapped(model: nn.Module, x: Tensor, **settings) -> BoundedModule:
    return BoundedModule(model, x, bound_opts={"local_lip": LocalLipConfig(certificate="deterministic", **settings)})


def ball(x: Tensor, eps: float) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)


FUNCTIONS = {
    "product": lambda x, y: x * y,
    "quotient": lambda x, y: x / (y.abs() + 1),
    "square": lambda x, y: x * x - y * y,
    "outer": lambda x, y: (x.unsqueeze(2) @ y.unsqueeze(1)).flatten(1),
    "inner": lambda x, y: (x.unsqueeze(1) @ y.unsqueeze(2)).flatten(1),
    "softmax": lambda x, y: torch.softmax(x * y, 1),
}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_the_models_at_any_scale(name, scale):
    """What the rotation would cancel, the operator's own rule keeps."""
    model = Pair(FUNCTIONS[name], scale).double()
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = network_graph(wrapped(model, x))
    torch.testing.assert_close(graph.values(x)[graph.output], model(x), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_intervals_hold_and_those_of_products_are_exact(name):
    model = Pair(FUNCTIONS[name]).double()
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = network_graph(wrapped(model, x))
    intervals = {graph.input: (x - 0.3, x + 0.3)}
    for node in graph:
        if not node.is_input:
            intervals[node.name] = node_interval(node, intervals)
    lower, upper = intervals[graph.output]
    corners = torch.randn(4000, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).sign()
    values = torch.stack([model(x + 0.3 * c) for c in corners])
    assert (lower <= values.amin(0)).all() and (upper >= values.amax(0)).all()
    if name in ("product", "outer", "inner"):
        torch.testing.assert_close(lower, values.amin(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(upper, values.amax(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["local-lip", "sdp-crown"])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_and_constants_hold(name, eps, method):
    model = Pair(FUNCTIONS[name], 5.0).double()
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    bounded = wrapped(model, x)
    lower, upper = bounded.compute_bounds(x=ball(x, eps), method=method)
    constant = bounded.local_lipschitz(x=ball(x, eps))
    assert (constant.lower <= constant.upper).all()
    for point in ball_points(x, eps, 60):
        value = model(point)
        assert (value >= lower - 1e-12).all() and (value <= upper + 1e-12).all()
        for i in range(len(x)):
            jacobian = torch.autograd.functional.jacobian(model, point[i : i + 1])[0, :, 0]
            assert torch.linalg.matrix_norm(jacobian, 2) <= constant.upper[i] * (1 + 1e-9)


def test_shifted_scales_change_no_value_and_tighten():
    """A factor of large moves and one of small ones: the remainder is that of a product of two equal ones."""
    model = Pair(lambda x, y: torch.tanh(x * y).sum(1, keepdim=True), 64.0).double()
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    graph = network_graph(wrapped(model, x))
    points = [x + 0.1 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(i)) for i in (5, 6)]
    moved = balanced(graph, x, points)
    assert moved is not graph and any(n.factors for n in moved)
    for name, value in graph.values(points[0]).items():
        if ":" not in name:
            torch.testing.assert_close(moved.values(points[0])[name], value, rtol=1e-14, atol=1e-14)
    exact = {p.parents[0]: moved[p.name].maps[0].maps[1].scale for p in moved if p.factors}
    for scale in exact.values():
        assert (scale[0] * scale[1] == 1).all() and (scale[0] == 8).all()


def test_the_tangent_of_a_product_is_exact():
    """At a small radius the bound is the linear map's, ``‖(y, x)‖ ε``, and no more."""
    model = Pair(lambda x, y: (x * y).sum(1, keepdim=True)).double()
    x = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    lower, upper = wrapped(model, x).compute_bounds(x=ball(x, 1e-6), method="local-lip")
    assert (upper - lower).item() == pytest.approx(2e-6 * x.norm().item(), rel=1e-5)


def test_a_wrong_rule_is_found(monkeypatch):
    """The tests above can fail: half a product."""
    monkeypatch.setattr(products.Total, "of_pairs", lambda self, x: self(x.sum(1)) * 0.5)
    with pytest.raises((AssertionError, LirpaLipError)):
        test_bounds_and_constants_hold("product", 0.3, "local-lip")


POLES = {
    "division by an interval that holds 0": (lambda x, y: x / y, 0.1),
    "reciprocal": (lambda x, y: 1 / x, 0.1),
    "logarithm": (lambda x, y: torch.log(x), 0.1),
    "square root": (lambda x, y: torch.sqrt(x), 0.1),
    "fractional power": (lambda x, y: x**0.5 + y**1.5, 0.1),
    "negative power": (lambda x, y: x**-2, 0.1),
    "tangent": (torch.tan, 1.55),
}


@pytest.mark.parametrize("name", POLES)
@pytest.mark.parametrize("method", ["local-lip", "sdp-crown", "lipschitz", "clarke-jacobian"])
def test_a_pole_in_reach_is_an_error_by_name(name, method):
    fn, at = POLES[name]
    model = Pair(fn if name != "tangent" else lambda x, y: torch.tan(x)).double()
    x = torch.full((1, 6), at, dtype=torch.float64)
    bounded = wrapped(model, x)
    with pytest.raises(DomainError) as error:
        if method in ("lipschitz", "clarke-jacobian"):
            bounded.local_lipschitz(x=ball(x, 0.2), method="local-lip" if method == "lipschitz" else method)
        else:
            bounded.compute_bounds(x=ball(x, 0.2), method=method)
    assert error.value.operator.startswith("Bound") and "eps smaller" in str(error.value)


def test_records_say_nothing_outside_their_domain():
    low, high = torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double()
    for record in (curved.square_root(), curved.logarithm(), curved.reciprocal(), curved.reciprocal_root(),
                   curved.power(-2), curved.power(1.5)):  # fmt: skip
        assert record.outside(low, high)
        assert [t.item() for t in record.interval(low, high)] == [-torch.inf, torch.inf]
        slopes = record.slope_range(low, high)
        assert (slopes.low.item(), slopes.high.item()) == (-torch.inf, torch.inf)


def test_exponentials_that_overflow_are_an_error_or_infinite():
    model = Pair(lambda x, y: torch.exp(200 * x) - y).double()
    x = torch.full((1, 6), 3.0, dtype=torch.float64)
    try:
        lower, upper = wrapped(model, x).compute_bounds(x=ball(x, 1.0), method="local-lip")
    except LirpaLipError as error:
        assert "overflow" in str(error)
    else:
        assert torch.isinf(upper).all() and not torch.isnan(lower).any()


@pytest.mark.parametrize("method", ["ibp", "crown", "local-lip", "local-lip-crown"])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_softmax_to_the_last_place(method, eps):
    """auto_LiRPA adds 1e-8 to the sums of its own rule, on both sides."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.Linear(2, 3)).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    lower, upper = wrapped(model, x).compute_bounds(x=ball(x, eps), method=method)
    slack = 1e-13 + 10 * eps
    value = model(x)
    assert (lower <= value + 1e-14).all() and (upper >= value - 1e-14).all() and (upper - lower <= slack).all()


def test_softmax_along_one_entry():
    """Written out, too: there is no axis then to sum over."""

    def both(x, y):
        one = (x + y).sum(1, keepdim=True)
        parts = torch.exp(one - x.sum(1, keepdim=True))
        return torch.softmax(one, 1) + parts / parts.sum(1, keepdim=True) + one

    model = Pair(both).double()
    x = torch.randn(2, 6, dtype=torch.float64)
    lower, upper = wrapped(model, x).compute_bounds(x=ball(x, 0.1), method="local-lip")
    assert (lower <= model(x)).all() and (upper >= model(x)).all()


def test_softmax_does_not_overflow():
    model = Pair(lambda x, y: torch.softmax(300 * x, 1)).double()
    x = torch.tensor([[3.0, 2.0, -4.0, 0, 0, 0]], dtype=torch.float64)
    lower, upper = wrapped(model, x).compute_bounds(x=ball(x, 0.01), method="local-lip")
    assert (lower <= model(x)).all() and (upper >= model(x)).all() and (upper - lower <= 1e-10).all()


def test_steps_and_products_too_large_are_refused(monkeypatch):
    x = torch.randn(1, 6)
    for fn, word in ((torch.floor, "floor"), (torch.sign, "sign"), (torch.round, "round")):
        with pytest.raises(UnsupportedOperatorError, match=word):
            wrapped(Call(fn), x).compute_bounds(x=ball(x, 0.1), method="local-lip")
    monkeypatch.setattr(products, "MOST_PAIRS", 8)
    with pytest.raises(UnsupportedOperatorError, match="products of varying values"):
        wrapped(Pair(FUNCTIONS["outer"]), x).compute_bounds(x=ball(x, 0.1), method="local-lip")
