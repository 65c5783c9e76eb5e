"""auto_LiRPA's own bounds pass a gate: NaN, crossed ends and values outside are errors, and what is valid stays."""

from __future__ import annotations

import inspect
import math

import auto_LiRPA
import pytest
import torch
from auto_LiRPA import BoundedParameter
from networks.operators import Call
from torch import nn

import lirpa_lip
from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import ConfigError, InvalidBoundError, MethodFailedError

X = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))


def ball(x=X, eps=0.05, norm=2, **box):
    return (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps, **box)),)


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def spoilt(monkeypatch, change):
    """auto_LiRPA as it would be with a wrong rule."""
    original = auto_LiRPA.BoundedModule.compute_bounds

    def compute_bounds(self, *args, **kwargs):
        low, up, *rest = original(self, *args, **kwargs)
        return (low, up, *rest) if low is None or up is None else change(low, up)  # one side: α-CROWN's own steps

    monkeypatch.setattr(auto_LiRPA.BoundedModule, "compute_bounds", compute_bounds)


WRONG = {
    "NaN": (lambda low, up: (low * torch.nan, up), "NaN"),
    "crossed": (lambda low, up: (up, low), "above the upper one"),
    "too high": (lambda low, up: (low + 1, up + 1), "a lower bound of .* the model's value"),
    "too low": (lambda low, up: (low - 1, up - 1), "an upper bound of .* the model's value"),
    "by little": (lambda low, up: (low, low + 1e-4), "an upper bound of .* the model's value"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("method", ["IBP", "CROWN", "CROWN-IBP", "forward", "alpha-CROWN"])
def test_wrong_bounds_are_refused(monkeypatch, net, name, method):
    change, words = WRONG[name]
    bounded = BoundedModule(net, X)
    spoilt(monkeypatch, change)
    with pytest.raises(InvalidBoundError, match=words) as caught:
        bounded.compute_bounds(x=ball(), method=method)
    assert method in str(caught.value) and "local-lip" in str(caught.value)


def test_with_a_specification(monkeypatch, net):
    rows = torch.randn(2, 5, 3)
    bounded = BoundedModule(net, X)
    bounded.compute_bounds(x=ball(), C=rows, method="CROWN")
    spoilt(monkeypatch, lambda low, up: (low, up - 1))
    with pytest.raises(InvalidBoundError):
        bounded.compute_bounds(x=ball(), C=rows, method="CROWN")
    with pytest.raises(InvalidBoundError):
        bounded.compute_bounds(x=ball(), C=rows, method="local-lip-crown")


def test_an_empty_intersection_names_both(monkeypatch, net):
    import lirpa_lip.local.bounds as local_lip

    bounded = BoundedModule(net, X)
    monkeypatch.setattr(local_lip, "_crown", lambda *args: ({}, (torch.full((2, 3), 9.0), torch.full((2, 3), 10.0))))
    with pytest.raises(InvalidBoundError, match=r"CROWN's lower bound .* local-lip's upper bound"):
        bounded.compute_bounds(x=ball(), method="local-lip-crown")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "method", ["IBP", "CROWN", "CROWN-IBP", "forward", "local-lip", "local-lip-crown", "sdp-crown"]
)
def test_a_point_is_no_false_alarm(dtype, method):
    """At eps = 0 rounding decides on which side a value lies."""
    torch.manual_seed(1)
    layers = [m for _ in range(6) for m in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(nn.Linear(4, 32), *layers, nn.Linear(32, 3)).to(dtype)
    bounded = BoundedModule(model, X.to(dtype))
    for scale in (1e-4, 1.0, 1e4):
        lower, upper = bounded.compute_bounds(x=ball(X.to(dtype) * scale, 0.0), method=method)
        assert torch.allclose(lower, upper, rtol=1e-2)


def test_legitimate_uses(net):
    bounded = BoundedModule(net, X)
    assert bounded.compute_bounds(x=ball(), method="CROWN", bound_lower=False)[0] is None
    assert bounded.compute_bounds(x=ball(), method="CROWN", bound_upper=False)[1] is None
    needed = {bounded.output_name[0]: {bounded.input_name[0]}}
    found = bounded.compute_bounds(x=ball(), method="CROWN", return_A=True, needed_A_dict=needed)
    assert len(found) == 3 and found[2]
    hidden = next(n.name for n in bounded._modules.values() if type(n).__name__ == "BoundRelu")
    assert bounded.compute_bounds(x=ball(), method="IBP", final_node_name=hidden)[0].shape == (2, 6)
    lower, upper = bounded.compute_bounds(x=ball(), C=torch.eye(3).expand(2, -1, -1), method="IBP")
    assert (lower <= net(X)).all() and (net(X) <= upper).all()
    assert torch.equal(bounded.compute_bounds(method="IBP", C=torch.eye(3).expand(2, -1, -1))[0], lower)
    assert bounded.compute_bounds(x=(X,), method="IBP")[0].shape == (2, 3)
    plain = BoundedModule(net, X)(X)
    torch.testing.assert_close(plain, net(X))


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(2, 3)

        def forward(self, x, y):
            return torch.relu(self.one(x)) + self.two(y)

    model, y = Two(), torch.rand(2, 2)
    bounded = BoundedModule(model, (X, y))
    for inputs in ((*ball(), *ball(y, 0.1)), (*ball(norm=torch.inf), y)):
        lower, upper = bounded.compute_bounds(x=inputs, method="IBP")
        assert ((lower <= model(X, y)) & (model(X, y) <= upper)).all()


def test_perturbed_weights(net):
    net[0].weight = BoundedParameter(net[0].weight.data, PerturbationLpNorm(norm=torch.inf, eps=0.01))
    bounded = BoundedModule(net, X)
    for method in ("IBP", "CROWN-IBP"):
        lower, upper = bounded.compute_bounds(x=(X,), method=method)
        assert ((lower <= net(X)) & (net(X) <= upper)).all() and (upper - lower).max() > 1e-3


def test_training_by_their_bounds():
    """Batch norm in training mode, gradients through IBP: as with auto_LiRPA alone."""
    torch.manual_seed(0)
    x = torch.rand(32, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    bounded = BoundedModule(model, x)
    bounded.train()
    optimizer = torch.optim.SGD(bounded.parameters(), lr=0.1)
    for _ in range(3):
        bounded(x)
        lower, upper = bounded.compute_bounds(x=ball(x, norm=torch.inf), method="IBP")
        optimizer.zero_grad()
        (upper - lower).sum().backward()
        assert model[0].weight.grad.abs().sum() > 0
        optimizer.step()
    assert torch.isfinite(lower).all()


@pytest.mark.parametrize("method", ["local-lip", "sdp-crown", "local-lip-crown", "IBP"])
def test_a_box_beside_a_ball(net, method):
    bounded = BoundedModule(net, X)
    for box in ({"x_L": X, "x_U": X}, {"x_L": X - 1}, {"x_U": X + 1}):
        with pytest.raises(ConfigError, match="x_L"):
            bounded.compute_bounds(x=ball(eps=100, **box), method=method)
    for box in ({"x_L": X, "x_U": X + torch.tensor([0.0, 0, 1, 1])}, {"x_L": X - 1, "x_U": X + 1}):
        lower, upper = bounded.compute_bounds(x=ball(eps=100, **box), method=method)
        assert ((lower <= net(X)) & (net(X) <= upper)).all()
    lower, upper = bounded.compute_bounds(x=ball(eps=0.0, x_L=X, x_U=X), method=method)
    torch.testing.assert_close(lower, upper, rtol=1e-3, atol=1e-4)


def test_a_box_beside_a_ball_for_constants(net):
    bounded = BoundedModule(net, X)
    for method in ("local-lip", "naive"):
        with pytest.raises(ConfigError, match="x_L"):
            bounded.local_lipschitz(x=ball(eps=100, x_L=X, x_U=X), method=method)


def test_their_own_class_keeps_its_meaning(net):
    """There a box beside a ball means nothing: ours refuse it, theirs ignore it, as ever."""
    theirs = auto_LiRPA.perturbations.PerturbationLpNorm
    with_box = (BoundedTensor(X, theirs(norm=2, eps=0.5, x_L=X, x_U=X)),)
    without = (BoundedTensor(X, theirs(norm=2, eps=0.5)),)
    lirpa_lip.register()
    try:
        bounded = auto_LiRPA.BoundedModule(net, X)
        for method in ("local-lip", "sdp-crown"):
            with pytest.raises(ConfigError, match="ignores x_L and x_U"):
                bounded.compute_bounds(x=with_box, method=method)
        for method in ("IBP", "CROWN"):
            found, expected = (bounded.compute_bounds(x=x, method=method) for x in (with_box, without))
            torch.testing.assert_close(found, expected)
    finally:
        lirpa_lip.unregister()


def test_registered_class_passes_the_gate():
    model = Call(lambda x: 2 * x + 1)
    lirpa_lip.register()
    try:
        bounded = auto_LiRPA.BoundedModule(model, X)
        bounded.compute_bounds(x=ball(), method="local-lip")
        model.fn = lambda x: 3 * x + 1
        for method in ("local-lip", "IBP"):
            with pytest.raises(lirpa_lip.errors.TraceMismatchError):
                bounded.compute_bounds(x=ball(), method=method)
    finally:
        lirpa_lip.unregister()


def test_wrapped_before_registration():
    bounded = auto_LiRPA.BoundedModule(Call(lambda x: 2 * x), X)
    lirpa_lip.register()
    try:
        with pytest.raises(ConfigError, match="wrap it after"):
            bounded.compute_bounds(x=ball(), method="local-lip")
    finally:
        lirpa_lip.unregister()


def test_one_number_a_sample(monkeypatch):
    """Outputs and bounds of shape (batch,) are held against each other like any others."""
    model = Call(lambda x: torch.relu(x).sum(1)).eval()
    x = torch.randn(3, 4)
    lower, upper = BoundedModule(model, x).compute_bounds(x=ball(x), method="ibp")
    assert bool((lower <= model(x)).all() and (upper >= model(x)).all())
    spoilt(monkeypatch, lambda low, up: (low + 1, up + 1))
    with pytest.raises(InvalidBoundError):
        BoundedModule(model, x).compute_bounds(x=ball(x), method="ibp")


def test_linear_constraints_beside_a_box():
    """Where 0.7 takes them, the centre, too, may lie outside, and is then no witness."""
    if "constraints" not in inspect.signature(auto_LiRPA.PerturbationLpNorm.__init__).parameters:
        pytest.skip("this auto_LiRPA has no constraints")
    x = torch.ones(1, 2)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    low, high = torch.tensor([[-1.0, -2.0]]), torch.tensor([[2.0, 1.0]])
    half = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[2.0]])  # x₀ + x₁ + 2 <= 0
    region = auto_LiRPA.PerturbationLpNorm(norm=math.inf, x_L=low, x_U=high, constraints=half)
    lower, upper = BoundedModule(model, x).compute_bounds(x=(BoundedTensor(x, region),), method="CROWN")
    points = low + (high - low) * torch.rand(200, 2)
    inside = model(points[points.sum(1) + 2 <= 0])
    assert len(inside) and bool((inside >= lower - 1e-5).all() and (inside <= upper + 1e-5).all())


def test_jacobian_of_a_concatenation_is_wrapped():
    """0.7 adds inputs of its own to such a graph."""
    jacobian = pytest.importorskip("auto_LiRPA.jacobian", reason="this auto_LiRPA has no Jacobians")
    model = Call(lambda x: jacobian.JacobianOP.apply(torch.cat([x, x], dim=1), x)).eval()
    BoundedModule(model, torch.randn(1, 5))


def test_bounds_of_another_shape_than_the_rows_of_c_are_no_bounds():
    """auto_LiRPA's interval arithmetic broadcasts C over an output that is not flat."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 1, 1)).eval()
    x = torch.rand(3, 3, 3, 3)
    bounded = BoundedModule(model, x)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),)
    rows = torch.randn(3, 3, 1)
    with pytest.raises((InvalidBoundError, MethodFailedError), match="C"):
        bounded.compute_bounds(x=ball, C=rows, method="ibp")
    lower, upper = bounded.compute_bounds(x=ball, C=rows, method="local-lip")
    value = torch.einsum("bso,bo->bs", rows, model(x).flatten(1))
    assert bool((lower <= value).all()) and bool((value <= upper).all())
