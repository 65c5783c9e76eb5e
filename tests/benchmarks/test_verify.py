"""The verification benchmark at toy size: rows are measured once, sound, and drawn."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import verify

    yield verify
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(BENCHMARKS))]:
        del sys.modules[name]


def toy(name: str, images: int, cache) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(6, 1, 4, 4)[:images]
    return model, x, model(x).argmax(1)


def test_rows_are_measured_once_and_sound(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "load", toy)
    monkeypatch.setattr(bench, "RADII", {"toy": "0.05 1/2"})
    out, picture = tmp_path / "verify.csv", tmp_path / "verify.png"
    call = ["--images", "5", "--networks", "toy", "--steps", "1", "--batch", "2", "--out", str(out)]
    methods = "ibp,crown,global-product,local-product,local-lip,sdp-crown-global"
    for chosen in ("crown", methods):  # the second run adds what the first has not
        result = CliRunner().invoke(bench.main, [*call, "--methods", chosen, "--figure", str(picture)])
        assert result.exit_code == 0, (result.output, result.exception)
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and len({(r["eps"], r["method"]) for r in rows}) == 12
    by_key = {(r["eps"], r["method"]): r for r in rows}
    for row in rows:
        assert row["violations"] == "0" and row["images"] == "5" and len(row["verdicts"]) == 5
        assert int(row["samples_checked"]) == 21 * 5
        assert float(row["certified"]) <= float(row["pgd"]) <= float(row["clean"]) == 1.0
        assert row["verdicts"].count("1") == round(5 * float(row["certified"]))
        assert row["hardware"] and "torch" in row["versions"] and row["date"]
    for eps in ("0.05", "1/2"):
        local, whole = (float(by_key[eps, m]["mean_worst_margin"]) for m in ("local-lip", "global-product"))
        assert local >= whole
    assert picture.stat().st_size > 1000


def test_a_method_that_costs_too_much_is_named_and_not_run(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "load", toy)
    monkeypatch.setattr(bench, "RADII", {"toy": "0.05"})
    out = tmp_path / "verify.csv"
    call = ["--networks", "toy", "--methods", "crown", "--cost-limit", "0", "--out", str(out)]
    assert CliRunner().invoke(bench.main, call).exit_code == 0
    (row,) = csv.DictReader(out.open(encoding="utf-8"))
    assert row["note"].startswith("not run") and row["certified"] == "" and row["images"] == "0"


def test_violations_are_found(bench):
    """Bounds that are too high, and Lipschitz constants that are too small, are counted."""
    case = bench.Case("toy", "0.5", *toy("toy", 4, None))
    true = case.margins.amin(0)
    whole = slice(0, 4)
    assert case.violations(true - 1e-3, whole) == 0
    assert case.violations(true + 1e-2, whole) >= true.numel()
    method = bench.make_method("local-lip", case.model, case.x)
    assert bench.gradient_violations(case, method) == 0

    class TooSmall:
        bounded = method.bounded

        @staticmethod
        def lipschitz(x, c, eps):
            found = method.lipschitz(x, c, eps)
            return replace(found, upper=found.upper * 0.1)

    assert bench.gradient_violations(case, TooSmall) > 0


def test_attack_stays_in_the_ball_and_finds_what_random_points_do_not(bench):
    from lib.attack import sampled_points, strongest

    model, x, y = toy("toy", 6, None)
    worst = strongest(model, x, y, 0.5, steps=30)
    points = sampled_points(x, 0.5, 20)
    for y_ in (worst, *points):
        assert ((y_ - x).flatten(1).norm(dim=1) <= 0.5).all() and y_.min() >= 0 and y_.max() <= 1

    def margin(z):
        logits = model(z)
        return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)

    assert (margin(worst) <= torch.stack([margin(p) for p in points]).amin(0) + 1e-6).all()
