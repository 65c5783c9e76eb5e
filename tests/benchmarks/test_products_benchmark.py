"""The benchmark of products: it runs, and counts what contradicts a bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def products(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import products

    return products


def rows_of(products, tmp_path, networks: str) -> list[dict[str, str]]:
    out = tmp_path / "products.csv"
    done = CliRunner().invoke(products.main, ["--networks", networks, "--quick", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return products.Table(out, products.COLUMNS).rows()


def test_it_runs_and_finds_no_violation(products, tmp_path):
    rows = rows_of(products, tmp_path, "squeeze-excite,lighting")
    assert len(rows) == 7 + 8 and all(row["violations"] == "0" and not row["note"] for row in rows)
    assert all(float(row["ratio"]) >= 1 - 1e-3 for row in rows if "constant" in row["method"])
    assert all(int(r["certified"]) <= int(r["robust"]) for r in rows if r["certified"])


def test_a_violation_is_counted(products, tmp_path, monkeypatch):
    true = products.BoundedModule.compute_bounds

    def half(self, *arguments, **options):
        low, high = true(self, *arguments, **options)
        return (low, high) if high is None else (0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high)

    monkeypatch.setattr(products.BoundedModule, "compute_bounds", half)
    rows = rows_of(products, tmp_path, "lighting")
    assert any(int(row["violations"]) > 0 for row in rows)
    assert torch.is_grad_enabled()
