"""ℓ₂ balls as VNN-LIB states them, by squares of inputs: verdicts against a linear network's exact margin."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lirpa_lip
from lirpa_lip.errors import DataError
from lirpa_lip.verify import VerifySettings
from lirpa_lip.verify.network import network_of
from lirpa_lip.verify.rounding import root_above
from lirpa_lip.verify.vnnlib import read_vnnlib

HEAD = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "X_2", "Y_0", "Y_1"))
VIOLATED = "(assert (<= Y_0 Y_1))"
FAST = VerifySettings(time_limit=5, pgd_steps=30, restarts=2)
CENTRE = ("0.1", "-0.3", "2/5")


def square(index: int, middle: str) -> str:
    return f"(* (- X_{index} {middle}) (- X_{index} {middle}))"


def ball(squared: str, centre: tuple[str, ...] = CENTRE, sign: str = "<=") -> str:
    return f"(assert ({sign} (+ {' '.join(square(*pair) for pair in enumerate(centre))}) {squared}))"


def linear() -> nn.Module:
    """y_0 − y_1 = 3 x_0 − 2 x_1 + 6 x_2 − 2, of length 7: 1.3 at the centre."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -2.0, 6.0], [0.0, 0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([-2.0, 0.0]))
    return nn.Sequential(layer).eval()


def read(tmp_path, text: str):
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    return read_vnnlib(path, (3,), 2, torch.float32)


def word(tmp_path, text: str) -> str:
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    [verdict] = lirpa_lip.verify(network_of(linear(), (3,)), property=path, settings=FAST)
    if verdict.counterexample is not None:
        [case, *_] = read_vnnlib(path, (3,), 2, torch.float32).cases
        assert case.region.holds(verdict.counterexample)
    return verdict.word


# the margin reaches zero at distance 1.3 / 7 = 0.18571…
@pytest.mark.parametrize(("squared", "expected"), [("0.0344", "unsat"), ("0.0346", "sat"), ("0", "unsat")])
def test_verdicts_against_the_exact_distance(tmp_path, squared, expected):
    assert Fraction("0.0344") < Fraction(13, 70) ** 2 < Fraction("0.0346")
    assert word(tmp_path, HEAD + ball(squared) + VIOLATED) == expected


@pytest.mark.parametrize(
    "text",
    [
        "(assert (<= (+ (* X_0 X_0) (* -0.2 X_0) (* X_1 X_1) (* 0.6 X_1) (* X_2 X_2) (* -0.8 X_2) 0.26) 0.0344))",
        "(assert (>= 0.0688 (+ (* 2 (+ " + " ".join(square(*pair) for pair in enumerate(CENTRE)) + ")))))",
        "(assert (< (- (+ " + " ".join(square(*p) for p in enumerate(CENTRE)) + ") 0.0344) 0))",
    ],
)
def test_the_same_ball_in_other_words(tmp_path, text):
    [case] = read(tmp_path, HEAD + text + VIOLATED).cases
    [plain] = read(tmp_path, HEAD + ball("0.0344") + VIOLATED).cases
    assert case.region.stated.centre == plain.region.stated.centre
    assert case.region.stated.squared == Fraction("0.0344")
    assert word(tmp_path, HEAD + text + VIOLATED) == "unsat"


def test_version_2_reads_balls(tmp_path):
    pytest.importorskip("vnnlib")
    squares = " ".join(f"(* (- X[{i}] {m}) (- X[{i}] {m}))" for i, m in enumerate(("0.1", "-0.3", "0.4")))
    for squared, expected in (("0.0344", "unsat"), ("0.0346", "sat")):
        text = f"""(vnnlib-version <2.0>)
            (declare-network N (declare-input X float32 [3]) (declare-output Y float32 [2]))
            (assert (<= (+ {squares}) {squared})) (assert (<= Y[0] Y[1]))"""
        assert word(tmp_path, text) == expected


def test_ranges_cut_a_ball(tmp_path):
    """With x_2 at its centre or above, the margin falls along x_0 and x_1 alone, of length √13: 0.36 away."""
    cut = "(assert (>= X_2 2/5))"
    assert word(tmp_path, HEAD + ball("0.12") + cut + VIOLATED) == "unsat"
    assert word(tmp_path, HEAD + ball("0.14") + cut + VIOLATED) == "sat"


def test_inputs_that_are_fixed_need_no_square(tmp_path):
    fixed = "(assert (= X_2 0.4))"
    two = f"(assert (<= (+ {square(0, '0.1')} {square(1, '-0.3')}) %s))"
    assert word(tmp_path, HEAD + two % "0.12" + fixed + VIOLATED) == "unsat"
    assert word(tmp_path, HEAD + two % "0.14" + fixed + VIOLATED) == "sat"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fractions(-2, 2, max_denominator=1000), min_size=3, max_size=3), st.fractions(0, 4), st.data())
def test_the_region_holds_the_ball_and_counterexamples_lie_in_it(tmp_path_factory, centre, squared, data):
    region = read(tmp_path_factory.mktemp("p"), HEAD + ball(str(squared), tuple(map(str, centre))) + VIOLATED)
    region = region.cases[0].region
    middle, radius = region.enclosing()
    direction = data.draw(st.lists(st.fractions(-1, 1, max_denominator=100), min_size=3, max_size=3).filter(any))
    length = root_above(sum(part**2 for part in direction))
    edge = [
        c + part / length * root_above(squared) * Fraction(10**12 - 1, 10**12) for c, part in zip(centre, direction)
    ]
    away = sum((a - Fraction(b)) ** 2 for a, b in zip(edge, middle[0].tolist()))
    assert away <= Fraction(radius.item()) ** 2
    for point in region.sample(20, torch.Generator().manual_seed(0)):
        if not torch.equal(point, region.centre[0]):
            assert sum((Fraction(a) - c) ** 2 for a, c in zip(point.tolist(), centre)) <= squared


def test_roots_are_rounded_up():
    for value in (
        Fraction(0),
        Fraction(1, 4),
        Fraction(2),
        Fraction(1, 3) ** 40,
        Fraction(7, 10**60),
        Fraction(10**50),
    ):
        root = root_above(value)
        assert root**2 >= value and root**2 <= value * (1 + Fraction(1, 10**25))
    assert root_above(Fraction(9, 16)) == Fraction(3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"(assert (<= (+ {square(0, '0')} (* 2 {square(1, '0')}) {square(2, '0')}) 1))", "with one weight"),
        (f"(assert (<= (+ {square(0, '0')} X_1 {square(2, '0')}) 1))", "with one weight"),
        ("(assert (<= (* X_0 X_1) 1))", "two different inputs"),
        ("(assert (<= (* X_0 X_0 X_0) 1))", "products of variables"),
        ("(assert (<= (* Y_0 Y_0) 1))", "products of variables"),
        ("(assert (<= (* X_0 Y_0) 1))", "products of variables"),
        ("(assert (<= (+ (* X_0 X_0) Y_0) 1))", "inputs and outputs at once"),
        (ball("1", sign=">="), "outside of a ball"),
        (ball("-1"), "contradict each other"),
        (ball("0", sign="<"), "contradict each other"),
        (ball("0") + "(assert (< X_0 0.1))", "contradict each other"),
        (ball("1") + ball("2"), "2 balls"),
        (ball("1") + "(assert (>= X_0 0.5))", "centre of the ball lies outside"),
        (ball("1e700"), "exceeds what floats hold"),
        (ball("1", ("1e39", "0", "0")), "network's precision"),
        (f"(assert (<= {square(0, '0')} 1)) (assert (<= X_1 1)) (assert (>= X_1 0))", "X_2 is not bounded below"),
        (
            f"(assert (<= {square(0, '0')} 1)) (assert (<= X_1 1)) (assert (>= X_1 0)) (assert (= X_2 0))",
            "leaves out input 1",
        ),
    ],
)
def test_what_is_no_ball(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, HEAD + text + VIOLATED)


def test_a_centre_between_floats_widens_proofs_and_narrows_counterexamples(tmp_path):
    [case] = read(tmp_path, HEAD + ball("1e-16") + VIOLATED).cases
    region = case.region
    assert region.shift > 0 and region.radius >= root_above(Fraction("1e-16")) + region.shift
    assert region.holds(region.centre) and math.isfinite(region.reach)
    moved = region.centre.clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(1.0))
    exact = sum((Fraction(a) - Fraction(c)) ** 2 for a, c in zip(moved[0].tolist(), CENTRE))
    assert region.holds(moved) == (exact <= Fraction("1e-16"))
