"""``lirpa-lip compare`` from the terminal's side."""

import csv

import pytest
from click.testing import CliRunner
from torch import nn

from lirpa_lip.cli import main


def network(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, classes))


OWN = f"{__name__}:network"


@pytest.fixture
def call():
    return ["compare", OWN, "--dataset", "digits", "--limit", "5", "--batch-size", "3", "--eps", "0.01,1/255"]


def test_a_table_of_all_methods_and_radii(call, tmp_path):
    out = tmp_path / "table.csv"
    methods = "ibp,crown,global-product,local-lip"
    result = CliRunner().invoke(main, [*call, "--methods", methods, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["eps"], r["method"]) for r in rows] == [(e, m) for e in ("0.01", "1/255") for m in methods.split(",")]
    for row in rows:
        assert row["samples"] == "5" and not row["note"]
        assert 0 <= float(row["certified"]) <= float(row["clean"])
        assert (row["lipschitz"] == "") == (row["method"] in ("ibp", "crown"))
    local, whole = (float(rows[i]["lipschitz"]) for i in (3, 2))
    assert 0 < local <= whole * (1 + 1e-6)
    assert float(rows[3]["stable"]) > 0 and "local-lip" in result.output


def test_method_names_are_listed_and_checked(call):
    listed = CliRunner().invoke(main, [*call, "--methods", "help"])
    assert listed.exit_code == 0 and "sdp-crown" in listed.output
    wrong = CliRunner().invoke(main, [*call, "--methods", "magic"])
    assert wrong.exit_code != 0 and "magic" in wrong.output and "local-lip" in wrong.output


def test_own_networks_need_a_dataset():
    result = CliRunner().invoke(main, ["compare", OWN, "--eps", "0.1"])
    assert result.exit_code != 0 and "--dataset" in result.output


def test_a_run_brings_its_own_data(tmp_path):
    folder = tmp_path / "run"
    options = ["--dataset", "digits", "--arch", "mlp-small", "--loss", "plain", "--epochs", "1", "--out", str(folder)]
    trained = CliRunner().invoke(main, ["train", *options])
    assert trained.exit_code == 0, trained.output
    call = ["compare", str(folder), "--eps", "0.1", "--limit", "2", "--methods", "local-product"]
    result = CliRunner().invoke(main, call, catch_exceptions=False)
    assert result.exit_code == 0 and "local-product" in result.output
