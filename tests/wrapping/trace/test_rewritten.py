"""What a trace is rewritten for computes what the model does, and every method's bounds hold it."""

from __future__ import annotations

import pytest
import torch
from networks.rewritten import CASES
from sampling import ball_points
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import DomainError, LirpaLipError
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.wrapping.trace import moves, recurrent

EPS = 0.1
METHODS = ("ibp", "crown", "local-lip", "local-lip-crown", "sdp-crown")
#: Graphs of hundreds of nodes, made of operators that other rows bound by every method.
LONG = ("lstm projected", "gru both ways", "lstm", "encoder layer", "encoder layer masked", "attention weights",
        "attention masked")  # fmt: skip


def region(x: Tensor) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=EPS)),)


def wrapped(name: str) -> tuple[nn.Module, BoundedModule, Tensor]:
    torch.manual_seed(0)
    model = CASES[name].build().eval().double()
    x = torch.rand(3, *CASES[name].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return model, BoundedModule(model, x[:2]), x


def check(name: str) -> None:
    """Values at other batch sizes, intervals, both kinds of CROWN, local bounds, and constants of two methods."""
    model, bounded, x = wrapped(name)
    graph = network_graph(bounded)
    for part in (x, x[:1]):
        torch.testing.assert_close(graph.values(part)[graph.output], model(part), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        points = torch.stack([x, *ball_points(x, EPS, 30)])
        values = torch.stack([model(p) for p in points]).flatten(2)
    for method in METHODS[: 3 if name in LONG else 5]:
        lower, upper = (t.flatten(1) for t in bounded.compute_bounds(x=region(x), method=method))
        assert (lower <= values.amin(0) + 1e-9).all() and (upper >= values.amax(0) - 1e-9).all(), method
    moved, distance = (values[1:] - values[:-1]).norm(dim=2), (points[1:] - points[:-1]).flatten(2).norm(dim=2)
    for method in ("local-lip", "clarke-jacobian")[: 1 if name in LONG else 2]:
        found = bounded.local_lipschitz(x=region(x), method=method)
        assert (moved <= found.upper * distance * (1 + 1e-9)).all(), method
        assert (found.lower <= found.upper * (1 + 1e-9)).all(), method


@pytest.mark.parametrize("name", CASES)
def test_every_method_holds_it(name):
    check(name)


def test_an_angle_is_bounded_off_its_cut():
    class Angle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.atan2(x[:, :2], x[:, 2:])

    x = torch.tensor([[0.3, -0.4, 0.5, -0.1], [2.0, -1.0, -0.5, 1e-3]], dtype=torch.float64)
    bounded = BoundedModule(Angle(), x)
    points = torch.stack(list(ball_points(x, EPS, 200)))
    lower, upper = bounded.compute_bounds(x=region(x), method="local-lip")
    values = torch.atan2(points[..., :2], points[..., 2:])
    assert (lower <= values.amin(0)).all() and (upper >= values.amax(0)).all()
    with pytest.raises(DomainError):
        across = torch.tensor([[0.05, 1.0, -1.0, 1.0]], dtype=torch.float64)
        bounded.compute_bounds(x=region(across), method="local-lip")


def test_gradients_reach_weights_of_layers_written_out():
    for name in ("rnn", "attention", "einsum matrices"):
        model, bounded, x = wrapped(name)
        lower, upper = bounded.compute_bounds(x=region(x), method="local-lip")
        parameters = [p for n, p in model.named_parameters() if not n.endswith(("k_bias", "in_proj_bias"))]
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad((upper + 2 * lower).sum(), parameters)), name


def test_wrong_rewrites_are_found(monkeypatch):
    """The tests above can fail: gates in another order, entries one further on."""
    monkeypatch.setattr(
        recurrent.Steps, "part", lambda self, x, i, n, own=recurrent.Steps.part: own(self, x, n - 1 - i, n)
    )
    with pytest.raises((AssertionError, LirpaLipError)):
        check("lstm")
    own = moves._source
    monkeypatch.setattr(moves, "_source", lambda *a: own(*a).roll(1))
    with pytest.raises((AssertionError, LirpaLipError)):
        check("gather")
