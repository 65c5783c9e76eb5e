"""Regions that round both ways, rows and cases, both versions of VNN-LIB, programs, cuts of the input, the call."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lirpa_lip
from lirpa_lip.errors import ConfigError, ShapeError, TrainingModeError
from lirpa_lip.verify import InputRegion, OutputRow, Property, VerifySettings, corridor
from lirpa_lip.verify.attack import attack
from lirpa_lip.verify.cascade import decide_property
from lirpa_lip.verify.input_region import Span
from lirpa_lip.verify.input_splitting import split_inputs
from lirpa_lip.verify.network import network_of, normalised
from lirpa_lip.verify.properties import Case, margins_of, stays_first
from lirpa_lip.verify.readers import read_network
from lirpa_lip.verify.rounding import above, below
from lirpa_lip.verify.vnnlib import read_vnnlib


def mlp(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def span(low: str, high: str, *is_open: bool) -> Span:
    return Span(Fraction(low), Fraction(high), *is_open)


@pytest.mark.parametrize("text", ["0.1", "-0.1", "0.3", "1e-50", "16777217", "-1/3", "0.5"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rounding_has_a_direction(text, kind):
    value = Fraction(text)
    low, high = below(value, kind), above(value, kind)
    assert Fraction(low) <= value <= Fraction(high)
    assert high <= np.nextafter(kind(low), kind(math.inf)) or high - low <= 2 * abs(float(np.spacing(kind(low))))


def test_a_box_contains_what_was_asked_and_counterexamples_lie_in_it():
    region = InputRegion.from_ranges([span("0.1", "0.3"), span("0.1", "0.1")], (2,), torch.float32)
    low, high = region.low[0].tolist(), region.high[0].tolist()
    assert Fraction(low[0]) <= Fraction("0.1") and Fraction(high[0]) >= Fraction("0.3")
    assert Fraction(region.inner_low[0, 0].item()) >= Fraction("0.1")
    assert Fraction(region.inner_high[0, 0].item()) <= Fraction("0.3")
    assert region.inner_low[0, 1].item() == np.float32(0.1)  # the nearest counts as inside, and is proved
    assert low[1] <= np.float64(np.float32(0.1)) <= high[1] and Fraction(low[1]) <= Fraction("0.1") <= Fraction(high[1])
    assert region.holds(region.centre)
    outside = region.centre.clone()
    outside[0, 0] = torch.nextafter(region.inner_high[0, 0], torch.tensor(1.0))
    assert not region.holds(outside)


def test_open_ends_are_no_counterexample():
    region = InputRegion.from_ranges([span("0", "0.5", False, True)], (1,), torch.float32)
    assert region.holds(torch.zeros(1, 1)) and not region.holds(torch.full((1, 1), 0.5))
    assert region.high.item() >= 0.5


@pytest.mark.parametrize("norm", [2, math.inf])
def test_balls_round_both_ways(norm):
    x = torch.rand(1, 5)
    x[0, 0], x[0, 1] = 0.0, 1.0
    eps = Fraction("0.1")
    region = InputRegion.around(x, norm, eps, (Fraction(0), Fraction(1)))
    points = region.sample(200, torch.Generator().manual_seed(0))
    far = region.project(x + torch.randn(200, 5))
    for point in torch.cat([points, far]):
        assert region.holds(point.unsqueeze(0))
        moved = [Fraction(a) - Fraction(b) for a, b in zip(point.tolist(), x[0].tolist())]
        assert sum(m**2 for m in moved) <= eps**2 if norm == 2 else max(map(abs, moved)) <= eps
        assert all(0 <= v <= 1 for v in point.tolist())
    centre, radius = region.enclosing()
    corners = torch.where(torch.rand(50, 5) < 0.5, region.low, region.high)
    if norm != 2:
        assert bool(((corners - centre).norm(dim=1) <= radius).all())
    just_out = x.clone()
    just_out[0, 2] = float(np.nextafter(np.float32(x[0, 2] + above(eps)), np.float32(2)))
    assert not region.holds(just_out)


def test_rows_are_decided_exactly():
    row = OutputRow(((0, Fraction(1)), (1, Fraction(-1))), Fraction(0))
    assert row.holds([0.5, 0.5]) and not OutputRow(row.coefficients, Fraction(0), strict=True).holds([0.5, 0.5])
    tenth = OutputRow(((0, Fraction(1)),), Fraction("0.1"))
    assert not tenth.holds([0.1])  # the float64 number exceeds a tenth
    assert tenth.holds([math.nextafter(0.1, 0)])
    assert not tenth.holds([math.nan]) and not row.holds([-math.inf, 0.0])


def test_constants_round_to_the_safe_side():
    region = InputRegion.from_ranges([span("0", "1")], (1,), torch.float32)
    rows = (OutputRow(((0, Fraction("0.1")),), Fraction("0.3")), OutputRow(((0, Fraction(1)),), Fraction("0.1")))
    margins = margins_of([Case(region, (row,)) for row in rows], 1)
    assert margins.c.flatten().tolist() == [1.0, 1.0]  # a tenth is no float64 number: the row is multiplied by ten
    assert margins.d[0].item() == -3.0 and Fraction(margins.d[1].item()) <= Fraction("-0.1")


def test_a_case_is_excluded_by_any_of_its_rows():
    region = InputRegion.from_ranges([span("0", "1")], (1,), torch.float32)
    one = Fraction(1)
    both = Case(region, (OutputRow(((0, one),), -one), OutputRow(((0, -one),), -one)))
    margins = margins_of([both, Case(region, (OutputRow(((0, one),), -one),))], 1)
    assert margins.per_case(torch.tensor([2.0, -1.0, 0.5])).tolist() == [2.0, 0.5]


VERSION_1 = """; two boxes, and an output property with and/or
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (or (and (>= X_0 0) (<= X_0 0.1)) (and (>= X_0 0.5) (<= X_0 0.6))))
(assert (>= X_1 (- 0.25))) (assert (<= X_1 (+ 0.1 0.15)))
(assert (or (and (<= Y_0 Y_1) (< Y_0 3.5)) (>= (+ Y_0 (* 2.0 Y_1)) 0.3)))
"""
VERSION_2 = """(vnnlib-version <2.0>)
(declare-network N (declare-input X float32 [1,2]) (declare-output Y float32 [1,2]))
(assert (or (and (>= X[0,0] 0.0) (<= X[0,0] 0.1)) (and (>= X[0,0] 0.5) (<= X[0,0] 0.6))))
(assert (>= X[0,1] (- 0.25))) (assert (<= X[0,1] (+ 0.1 0.15)))
(assert (or (and (<= Y[0,0] Y[0,1]) (< Y[0,0] 3.5)) (>= (+ Y[0,0] (* 2.0 Y[0,1])) 0.3)))
"""


@pytest.mark.parametrize("text", [VERSION_1, VERSION_2])
def test_vnnlib(tmp_path, text):
    if text is VERSION_2:
        pytest.importorskip("vnnlib")
    (tmp_path / "p.vnnlib").write_text(text)
    claim = read_vnnlib(tmp_path / "p.vnnlib", (2,), 2, torch.float32)
    assert len(claim.cases) == 4 and len({id(c.region) for c in claim.cases}) == 2
    one, two = Fraction(1), Fraction(2)
    rows = {case.rows for case in claim.cases}
    assert rows == {
        (OutputRow(((0, one), (1, -one)), Fraction(0)), OutputRow(((0, one),), Fraction("3.5"), True)),
        (OutputRow(((0, -one), (1, -two)), Fraction("-0.3")),),
    }
    ends = {
        (c.region.low[0, 0].item() > 0.4, c.region.low[0, 1].item(), c.region.high[0, 1].item()) for c in claim.cases
    }
    assert ends == {(False, -0.25, 0.25), (True, -0.25, 0.25)}


class _Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.last(y.view(y.size(0), -1))


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_torchscript(tmp_path, kind):
    model = _Views().eval()
    made = torch.jit.script(model) if kind == "script" else torch.jit.trace(model, torch.zeros(1, 1, 4, 4))
    made.save(str(tmp_path / "net.pt"))
    with pytest.raises(ConfigError, match="--input-shape"):
        read_network(tmp_path / "net.pt")
    network = read_network(tmp_path / "net.pt", shape=(1, 4, 4))
    x = torch.rand(2, 1, 4, 4)
    assert torch.allclose(network.values(x), model(x)) and torch.equal(network.original(x[:1]), model(x[:1])[0])
    ours, own = (lirpa_lip.verify(n, x, eps=0.01, branch=False) for n in (network, model))
    assert [v.status for v in ours] == [v.status for v in own] == ["certified"] * 2
    assert ours[0].lower == pytest.approx(own[0].lower, rel=1e-6)


def test_weights_with_the_users_own_network(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make(input_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    network = read_network(tmp_path / "w.pth", arch="mine:make", shape=(2, 2))
    x = torch.rand(3, 2, 2)
    assert torch.equal(network.values(x), model(x)) and network.outputs == 3


def test_normalisation_is_part_of_the_network():
    model = mlp(3, 8, 2)
    network = normalised(network_of(model, (3,)), [0.1, 0.2, 0.3], [0.5, 1.0, 2.0])
    x = torch.rand(1, 3)
    seen = (x - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 1.0, 2.0])
    assert torch.allclose(network.values(x), model(seen)) and torch.allclose(network.original(x), model(seen)[0])
    with pytest.raises(ConfigError, match="3 features"):
        normalised(network_of(model, (3,)), [0.1, 0.2], [1.0, 1.0])


class _Camera(nn.Module):
    """A steering regressor behind the contrast and the brightness of one image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.register_buffer("image", torch.rand(1, 64))
        self.regressor = mlp(64, 24, 16, 1, seed=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.regressor(x[:, :1] * self.image + x[:, 1:])


def test_contrast_and_brightness_before_a_regressor():
    region = InputRegion.from_ranges([span("0.7", "1.3"), span("-0.2", "0.2")], (2,), torch.float32)
    model = _Camera().eval()
    nominal = Fraction(model(torch.tensor([[1.0, 0.0]])).item())
    grid = torch.cartesian_prod(torch.linspace(0.7, 1.3, 50), torch.linspace(-0.2, 0.2, 50))
    reached = max(abs(v - float(nominal)) for v in model(grid).flatten().tolist())
    settings = VerifySettings(time_limit=20)
    wide = corridor(region, [nominal], Fraction(reached * 1.01))
    (verdict,) = lirpa_lip.verify(model, property=wide, settings=settings)
    assert verdict.status == "certified" and 0 < verdict.lower <= verdict.upper
    (verdict,) = lirpa_lip.verify(model, property=corridor(region, [nominal], Fraction(reached * 0.99)))
    assert verdict.status == "refuted" and wide.cases[0].region.holds(verdict.counterexample)


def test_cuts_of_the_input_bound_the_region_whenever_they_stop():
    network = network_of(mlp(2, 12, 12, 2, seed=1), (2,))
    region = InputRegion.from_ranges([span("-1", "1"), span("-1", "1")], (2,), torch.float32)
    seen = network.values(region.sample(5000, torch.Generator().manual_seed(0))).double()
    least = (seen @ torch.tensor([1.0, -1.0], dtype=torch.float64)).min().item()
    one = Fraction(1)
    case = Case(region, (OutputRow(((0, one), (1, -one)), Fraction(least - 0.02)),))
    margins = margins_of([case], 2)
    before = -math.inf
    for seconds in (0.0, 0.2, 20.0):
        found = split_inputs(network, (case,), margins, time.monotonic() + seconds)
        assert before - 0.5 <= found.lower.item() <= 0.02 + 1e-6  # valid however early it stops
        before = found.lower.item()
    assert before > 0 and found.counterexample is None


def test_a_case_of_two_rows_on_a_ball():
    """Neither row excludes it at the bounds' own tightness; branching shows one of them."""
    model = mlp(4, 16, 16, 2, seed=2)
    network = network_of(model, (4,))
    region = InputRegion.around(torch.rand(1, 4), 2, Fraction("0.7"))
    y = network.values(region.sample(20000, torch.Generator().manual_seed(0))).double()
    one = Fraction(1)
    low = OutputRow(((0, one),), Fraction(y[:, 0].min().item() - 0.01))
    claim = Property((Case(region, (low, OutputRow(((1, one),), Fraction(10)))),))
    quick = VerifySettings(optimize=0, branch=False)
    assert decide_property(network, claim, quick).status == "open"
    verdict = decide_property(network, claim, replace(quick, branch=True, time_limit=40))
    assert verdict.status == "certified" and verdict.decided_by == "branching" and 0 < verdict.lower <= 0.0101
    broken = Property((Case(region, (replace(low, bound=low.bound + Fraction("0.02")), claim.cases[0].rows[1])),))
    assert decide_property(network, broken, replace(quick, branch=True, time_limit=40)).status == "refuted"


def test_the_call():
    model, x = mlp(6, 16, 16, 3), torch.rand(4, 6)
    labels = model(x).argmax(1)
    for norm in (2, math.inf):
        verdicts = lirpa_lip.verify(model, x, labels, "1/100", norm, box=(0, 1), branch=False)
        assert len(verdicts) == 4 and all(v.status == "certified" and v.word == "unsat" for v in verdicts)
        assert all(v.prediction == v.label and v.gap >= 0 and sum(v.seconds.values()) > 0 for v in verdicts)
    wrong = lirpa_lip.verify(model, x, (labels + 1) % 3, eps=0)
    assert all(v.status == "refuted" and torch.equal(v.counterexample, x[i : i + 1]) for i, v in enumerate(wrong))
    kept = lirpa_lip.verify(model, x, eps=0.05, within=10.0)
    assert all(v.status == "certified" and v.label is None for v in kept)
    assert lirpa_lip.verify.__name__ == "lirpa_lip.verify" and lirpa_lip.verify.Property is Property


def test_the_call_refuses():
    model, x = mlp(6, 8, 3), torch.rand(2, 6)
    with pytest.raises(ConfigError, match="x and eps"):
        lirpa_lip.verify(model, x)
    with pytest.raises(ShapeError, match="labels"):
        lirpa_lip.verify(model, x, torch.tensor([1]), 0.1)
    with pytest.raises(ShapeError, match="fails on an input"):
        lirpa_lip.verify(model, torch.rand(2, 7), eps=0.1)
    with pytest.raises(ConfigError, match="unknown setting"):
        lirpa_lip.verify(model, x, eps=0.1, speed=9)
    with pytest.raises(ConfigError, match="norm"):
        lirpa_lip.verify(model, x, eps=0.1, norm=1)
    with pytest.raises(TrainingModeError):
        lirpa_lip.verify(mlp(6, 8, 3).train(), x, eps=0.1)


def test_time_is_kept():
    network = network_of(mlp(4, 8, 3), (4,))
    region = InputRegion.around(torch.rand(1, 4), 2, Fraction(1))
    claim = stays_first(region, 0, 3)
    verdict = decide_property(network, claim, VerifySettings(time_limit=0.0))
    assert verdict.word == "timeout" and verdict.status == "open" and verdict.lower == -math.inf


@pytest.mark.parametrize("norm", [2, math.inf])
def test_what_is_certified_survives_a_long_attack(norm):
    """On balls cut by the box, deep in the region between the attack's radius and half of it."""
    model = mlp(8, 20, 20, 3, seed=5)
    x = torch.rand(6, 8)
    certified = 0
    for eps in ("0.1", "0.3", "0.6") if norm == 2 else ("0.03", "0.1", "0.2"):
        for i, v in enumerate(lirpa_lip.verify(model, x, eps=eps, norm=norm, box=(0, 1), time_limit=5)):
            region = InputRegion.around(x[i : i + 1], norm, Fraction(eps), (Fraction(0), Fraction(1)))
            claim = stays_first(region, int(model(x[i : i + 1]).argmax()), 3)
            margins = margins_of(claim.cases, 3)
            if v.status == "certified":
                certified += 1
                found = attack(network_of(model, (8,)), claim.cases, margins, steps=200, restarts=20, seed=9)
                assert found.counterexample is None and found.least >= v.lower
            elif v.status == "refuted":
                assert claim.violated(v.counterexample, v.output.tolist())
    assert certified >= 6
