"""The commands on Jacobian bounds, from the terminal's side."""

import csv

import pytest
from click.testing import CliRunner

from lirpa_lip.cli import main


def test_monotonicity_writes_a_table_and_a_figure(tmp_path):
    call = [
        "monotonicity",
        "--data",
        "diabetes",
        "--samples",
        "3",
        "--features",
        "bmi,0",
        "--epochs",
        "5",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(main, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with open(tmp_path / "monotonicity.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {r["feature"] for r in rows} == {"bmi", "age"}
    for row in rows:
        assert float(row["slope_lower"]) <= float(row["slope_upper"])
        assert (row["verdict"] != "increasing") or float(row["slope_lower"]) >= 0
    assert (tmp_path / "monotonicity.png").stat().st_size > 1000


def test_a_column_that_is_not_there_is_named(tmp_path):
    result = CliRunner().invoke(
        main, ["monotonicity", "--features", "shoe size", "--epochs", "1", "--out", str(tmp_path)]
    )
    assert result.exit_code != 0 and "shoe size" in result.output and "bmi" in result.output


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    call = [
        "train",
        "--dataset",
        "digits",
        "--arch",
        "mlp-small",
        "--loss",
        "plain",
        "--epochs",
        "1",
        "--out",
        str(folder),
        "--seed",
        "0",
    ]
    result = CliRunner().invoke(main, call)
    if result.exit_code != 0:
        pytest.skip(f"no trained network to look at: {result.output[-300:]}")
    return folder


def test_lipschitz_reports_every_method_and_resumes(run_folder, tmp_path):
    call = ["lipschitz", str(run_folder), "--eps", "1/255", "--limit", "1", "--time-limit", "1"]
    call += ["--state", str(tmp_path / "state"), "--out", str(tmp_path / "table.csv")]
    uppers = []
    for _ in range(2):
        result = CliRunner().invoke(main, call, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        with open(tmp_path / "table.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        values = [float(r["upper"]) for r in rows]
        assert values == sorted(values, reverse=True) and len(rows) == 4
        assert all(float(r["lower"]) <= float(r["upper"]) for r in rows)
        uppers.append(values[-1])
    assert uppers[1] <= uppers[0]
