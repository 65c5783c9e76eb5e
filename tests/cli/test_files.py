"""Nothing of a user's is overwritten, rows are on disk as they come, and what is asked twice is answered alike."""

from __future__ import annotations

import csv

import pytest
from commands import invoke
from torch import nn

from lirpa_lip.cli import compare as compare_module


def network(input_shape, classes):
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, classes))
    )


OWN = f"{__name__}:network"
COMPARE = ["compare", OWN, "--dataset", "digits", "--limit", "3"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "r"
    options = "--dataset digits --arch mlp-small --loss plain --epochs 1 --limit 100 --batch-size 50"
    assert invoke("train", *options.split(), "--out", folder).exit_code == 0
    assert invoke("certify", folder, "--bound", "ibp", "--limit", "4", "--pgd-steps", "0").exit_code == 0
    return folder


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_global_constant_reads_the_same_at_every_radius(tmp_path):
    """With norms from random starts; 0.3 and 0.30 are one radius."""
    options = ["--methods", "global-product,local-product", "--certificate", "probabilistic", "--eps", "0.3,0.30,0.1"]
    for name in ("a.csv", "b.csv"):
        assert invoke(*COMPARE, *options, "--seed", "7", "--out", tmp_path / name).exit_code == 0
    first, again = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert [r["eps"] for r in first] == ["0.3", "0.3", "0.1", "0.1"]
    constants = {r["lipschitz"] for r in first if r["method"] == "global-product"}
    assert len(constants) == 1 and [r["lipschitz"] for r in first] == [r["lipschitz"] for r in again]
    other = invoke(*COMPARE, *options, "--seed", "1", "--out", tmp_path / "c.csv")
    assert other.exit_code == 0
    assert {r["lipschitz"] for r in rows(tmp_path / "c.csv") if r["method"] == "global-product"} != constants


def test_compare_refuses_to_overwrite_and_writes_as_it_goes(tmp_path, monkeypatch):
    out = tmp_path / "deep" / "table.csv"
    call = [*COMPARE, "--eps", "0.1", "--methods", "ibp,crown", "--out", out]
    measured, seen = compare_module._measured, []

    def watching(*args):
        seen.append(len(rows(out)))
        return measured(*args)

    monkeypatch.setattr(compare_module, "_measured", watching)
    assert invoke(*call).exit_code == 0 and seen == [0, 1] and len(rows(out)) == 2
    out.write_text("mine")
    refused = invoke(*call)
    assert refused.exit_code == 1 and "--force" in refused.output and out.read_text() == "mine"
    assert invoke(*call, "--force").exit_code == 0 and len(rows(out)) == 2


@pytest.mark.parametrize("name", ["report.csv", "report.md", "report.png"])
def test_report_leaves_other_files_alone(run_folder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    refused = invoke("report", run_folder, "--out", tmp_path)
    assert refused.exit_code == 1 and name in refused.output and (tmp_path / name).read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    assert invoke("report", run_folder, "--out", tmp_path, "--force").exit_code == 0
    assert invoke("report", run_folder, "--out", tmp_path).exit_code == 0  # its own it may write anew


def test_report_says_what_is_damaged(run_folder, tmp_path):
    (tmp_path / "summary.json").write_text('{"samples": 3}')
    result = invoke("report", tmp_path, "--out", tmp_path / "r")
    assert result.exit_code == 1 and "damaged" in result.output
    same = invoke("report", run_folder, run_folder, "--out", tmp_path / "r")
    assert same.exit_code == 0 and len(rows(tmp_path / "r" / "report.csv")) == 1


@pytest.mark.parametrize("name", ["certificates.csv", "summary.json", "certified.png"])
def test_certify_leaves_other_files_alone(run_folder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    call = ["certify", run_folder, "--bound", "ibp", "--limit", "2", "--pgd-steps", "0", "--out", tmp_path]
    refused = invoke(*call)
    assert refused.exit_code == 1 and name in refused.output and (tmp_path / name).read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    assert invoke(*call, "--force").exit_code == 0 and invoke(*call).exit_code == 0


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv"])
def test_train_leaves_other_files_alone(tmp_path, name):
    (tmp_path / name).write_text("mine: 1\n")
    options = "--dataset digits --arch mlp-small --loss plain --epochs 1 --limit 100 --batch-size 50".split()
    refused = invoke("train", *options, "--out", tmp_path)
    assert refused.exit_code == 1 and name in refused.output and (tmp_path / name).read_text() == "mine: 1\n"
    assert invoke("train", *options, "--out", tmp_path, "--force").exit_code == 0


def test_a_run_that_died_before_its_first_checkpoint_may_start_again(run_folder, tmp_path):
    for name in ("config.yaml", "metrics.csv"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    options = "--dataset digits --arch mlp-small --loss plain --epochs 1 --limit 100 --batch-size 50".split()
    assert invoke("train", *options, "--out", tmp_path).exit_code == 0


def test_a_typo_in_a_runs_settings_is_blamed_on_its_file(run_folder, tmp_path):
    import shutil

    shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    text = (run_folder / "config.yaml").read_text()
    for wrong, message in (
        (text.replace("epochs: 1", "epoch: 1"), "did you mean 'epochs'"),
        (text.replace("kappa: 0.0", "kappa: .nan"), "kappa must lie"),
        (text.replace("loss: plain", "loss: plane"), "unknown loss in"),
    ):
        (tmp_path / "config.yaml").write_text(wrong)
        result = invoke("train", "--resume", "--out", tmp_path)
        assert result.exit_code == 1 and message in result.output, result.output
        assert str(tmp_path / "config.yaml") in result.output and "command line" not in result.output
    (tmp_path / "config.yaml").write_text(text)
    result = invoke("train", "--resume", "--out", tmp_path, "--limit", "50")
    assert "config.yaml" not in result.output


def test_lipschitz_and_monotonicity_leave_other_files_alone(run_folder, tmp_path, monkeypatch):
    out = tmp_path / "table.csv"
    out.write_text("mine")
    call = ["lipschitz", run_folder, "--limit", "1", "--methods", "naive", "--out", out]
    assert invoke(*call).exit_code == 1 and out.read_text() == "mine"
    assert invoke(*call, "--force").exit_code == 0 and len(rows(out)) == 1
    (tmp_path / "monotonicity.csv").write_text("mine")
    refused = invoke("monotonicity", "--out", tmp_path, "--epochs", "1")
    assert refused.exit_code == 1 and (tmp_path / "monotonicity.csv").read_text() == "mine"


def test_certify_adds_samples_and_radii_and_refuses_other_data(run_folder, tmp_path):
    call = ["certify", run_folder, "--bound", "ibp", "--pgd-steps", "0", "--batch-size", "3", "--out", tmp_path]
    first = invoke(*call, "--eps", "0.01", "--limit", "4")
    assert first.exit_code == 0 and "4 samples" in first.output and "certifying: 3 of 4" in first.output
    more = invoke(*call, "--eps", "0.01,0.02", "--limit", "7")
    assert more.exit_code == 0 and "7 samples" in more.output and "left 0:00:0" in more.output
    assert {"certified@0.01", "certified@0.02"} <= rows(tmp_path / "certificates.csv")[0].keys()
    other = invoke(*call, "--eps", "0.01,0.02", "--limit", "7", "--split", "validation")
    assert other.exit_code == 1 and "choose another --out" in other.output
    none = invoke("certify", run_folder, "--bound", "ibp", "--limit", "2", "--radius", "none", "--pgd-steps", "0",
                  "--eps", "0.001", "--out", tmp_path / "none")  # fmt: skip
    assert none.exit_code == 0
    assert {float(r["radius"]) for r in rows(tmp_path / "none" / "certificates.csv")} <= {0.001, float("-inf")}


def test_old_names_on_the_command_line(run_folder, tmp_path):
    result = invoke("certify", run_folder, "--bound", "composed", "--limit", "1", "--pgd-steps", "0", "--eps", "0.001",
                    "--radius", "none", "--out", tmp_path)  # fmt: skip
    assert result.exit_code == 0 and "warning: bound 'composed' is called 'local-lip' now" in result.output
    assert "bound local-lip" in result.output
    assert "|composed" not in invoke("certify", "--help").output


def test_train_and_certify_without_flags_agree_on_the_radius(run_folder):
    result = invoke("certify", run_folder, "--bound", "ibp", "--limit", "2", "--pgd-steps", "0", "--radius", "none",
                    "--out", run_folder / "default")  # fmt: skip
    assert result.exit_code == 0
    assert "certified@0.5" in rows(run_folder / "default" / "certificates.csv")[0]
