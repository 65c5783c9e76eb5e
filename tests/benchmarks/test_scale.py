"""The cost benchmark: its networks are what their names say, and a row is measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale

    return scale


@pytest.mark.parametrize(
    "name, parameters",
    [("conv-large", 2_466_858), ("resnet18-16", 701_466), ("vgg11", 9_231_114), ("vgg11-strided", 9_231_114)],
)
def test_networks_have_the_published_size(scale, name, parameters):
    model, shape = scale.make_network(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(1, *shape)).shape == (1, 10)


def test_a_row_that_cannot_be_measured_says_why(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "row_of", lambda key, limit: {"note": f"not finished in {limit:g} s"})
    out = tmp_path / "scale.csv"
    done = CliRunner().invoke(scale.main, ["--networks", "6c2f", "--batches", "2", "--grad", "no", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = scale.Table(out, scale.COLUMNS).rows()
    assert [(r["call"], r["batch"], r["ratio"]) for r in rows] == [("local-lip", "2", ""), ("constant", "2", "")]
    assert all(r["note"] == "not finished in 3000 s" for r in rows)


def test_measured_row(scale, monkeypatch):
    monkeypatch.setattr(scale, "FORWARDS", 3)
    monkeypatch.setitem(scale.NETWORKS, "tiny", (lambda: torch.nn.Sequential(torch.nn.Linear(3, 2)), (3,)))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    row = scale.measure("tiny", 2, "local-lip", True)
    assert float(row["seconds"]) > 0 and row["parameters"] == 8
    assert float(row["seconds_per_image"]) == pytest.approx(float(row["seconds"]) / 2, rel=1e-3)
