"""``lirpa-lip certify`` and ``lirpa-lip report`` on a run of a few steps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import invoke

from lirpa_lip.cli.report import short_names

OPTIONS = "--eps 0.02,36/255 --limit 30 --pgd-steps 5 --radius-steps 1".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "trained"
    options = "--dataset digits --arch cnn-tiny --eps 0.1 --epochs 2 --ramp 1 --bound global --lr 5e-3"
    result = invoke("train", *options.split(), "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def certified(trained) -> Path:
    for bound in ("global-product", "local-product"):
        result = invoke("certify", trained, "--bound", bound, *OPTIONS)
        assert result.exit_code == 0, result.output
        assert "30 samples" in result.output and "36/255" in result.output and bound in result.output
    return trained / "certificates"


def test_certificates(certified):
    for bound in ("global-product", "local-product"):
        folder = certified / f"{bound}-test"
        with (folder / "certificates.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        summary = json.loads((folder / "summary.json").read_text())
        assert len(rows) == summary["samples"] == 30
        assert {r["certificate"] for r in rows} <= {"deterministic", "probabilistic"}
        share = sum(int(r["certified@0.02"]) for r in rows) / 30
        assert summary["table"][0]["certified"] == share > 0.3
        assert (folder / "certified.png").stat().st_size > 1000


def test_certifying_again_repeats_it_without_work(certified):
    before = (certified / "global-product-test" / "rows-0-of-1.csv").read_bytes()
    result = invoke("certify", certified.parent, "--bound", "global-product", *OPTIONS)
    assert result.exit_code == 0 and (certified / "global-product-test" / "rows-0-of-1.csv").read_bytes() == before
    other = invoke("certify", certified.parent, "--bound", "global-product", "--eps", "0.3", "--limit", "30")
    assert other.exit_code != 0 and "other settings" in other.output


def test_an_image_box_only_adds_to_what_is_certified(trained, tmp_path):
    """Radii of images in [0, 1] alone are no smaller than those of the whole ball; the box is part of the run."""
    radii = []
    for extra in ((), ("--image-box",)):
        folder = tmp_path / "-".join(("out", *extra))
        options = ("--eps", "0.1", "--limit", "8", "--pgd-steps", "0", "--bound", "local-product", "--seed", "0")
        result = invoke("certify", trained, *options, *extra, "--out", folder)
        assert result.exit_code == 0, result.output
        with next(folder.rglob("certificates.csv")).open(newline="") as file:
            radii.append([float(row["radius"]) for row in csv.DictReader(file)])
    assert len(radii[0]) == 8 and all(box >= ball * (1 - 1e-2) for ball, box in zip(*radii, strict=True))
    assert max(box - ball for ball, box in zip(*radii, strict=True)) > 0


def test_report(certified, tmp_path):
    result = invoke("report", certified, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["run"], r["eps"]) for r in rows] == [
        (run, eps) for run in ("global-product-test", "local-product-test") for eps in ("0.02", "36/255")
    ]
    assert all(float(r["certified"]) <= float(r["pgd"]) <= float(r["clean"]) for r in rows)
    assert (tmp_path / "report.md").read_text().count("\n") == 6
    assert (tmp_path / "report.png").stat().st_size > 1000
    named = invoke("report", certified, "--names", "a,b", "--out", tmp_path)
    assert named.exit_code == 0 and "\na,global-product," in named.output
    assert invoke("report", certified, "--names", "a", "--out", tmp_path).exit_code == 2


@pytest.mark.parametrize("command", ["certify", "report"])
def test_nothing_there(command, tmp_path):
    result = invoke(command, tmp_path)
    assert result.exit_code != 0 and "Traceback" not in result.output
    assert ("checkpoint" if command == "certify" else "certificates") in result.output


def test_damaged_checkpoint(trained, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints", copy / "checkpoints")
    for path in copy.rglob("tensors.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    result = invoke("certify", copy)
    assert result.exit_code != 0 and "damaged" in result.output and "Traceback" not in result.output


def test_short_names():
    paths = [Path("/a/runs/x/certificates/global"), Path("/a/runs/y/certificates/global")]
    assert short_names(paths) == ["x/global", "y/global"]
    assert short_names(paths[:1]) == ["global"]
