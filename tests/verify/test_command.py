"""``lirpa-lip verify`` in its fixed forms: the word, the counterexample, files that survive, errors in a line."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from networks.files import BOX, convolutional, mlp, run_original

from lirpa_lip.cli import main


def verify(*arguments):
    return CliRunner().invoke(main, ["verify", *(str(a) for a in arguments)])


def lines(result) -> list[str]:
    return result.stdout.splitlines()


@pytest.fixture
def network(tmp_path):
    return mlp(tmp_path / "net.onnx")


@pytest.fixture
def claim(tmp_path):
    def write(text: str):
        path = tmp_path / "p.vnnlib"
        path.write_text(BOX + text)
        return path

    return write


def test_a_property_that_holds(network, claim):
    result = verify(network, "--property", claim("(assert (or (>= Y_0 100) (<= Y_0 -100)))"), "--time-limit", 20)
    assert result.exit_code == 0 and lines(result) == ["unsat"]


def test_a_property_that_does_not_hold(network, claim):
    result = verify(network, "--property", claim("(assert (<= Y_0 100))"))
    assert result.exit_code == 0 and lines(result)[0] == "sat"
    values = {name: float(value) for name, value in re.findall(r"\((\w_\d+) ([-\d.e]+)\)", result.stdout)}
    assert 0.1 <= values["X_0"] <= 0.3 and -0.1 <= values["X_1"] <= 0.2
    expected = run_original(network, np.array([[values["X_0"], values["X_1"]]], dtype=np.float32))
    assert values["Y_0"] == expected.item() <= 100


def test_exit_codes_are_asked_for(network, claim, tmp_path):
    broken = claim("(assert (<= Y_0 100))")
    result = verify(network, "--property", broken, "--exit-code", "--counterexample", tmp_path / "x.txt")
    assert result.exit_code == 10 and lines(result) == ["sat"]
    assert (tmp_path / "x.txt").read_text().startswith("((X_0 ")


@pytest.fixture
def images(tmp_path):
    rng = np.random.RandomState(0)
    x = rng.rand(5, 1, 6, 6).astype(np.float32)
    path = convolutional(tmp_path / "conv.onnx")
    labels = np.array([run_original(path, one[None]).argmax() for one in x])
    labels[3] = (labels[3] + 1) % 3  # one that the network gets wrong
    np.savez(tmp_path / "images.npz", x=x, y=labels)
    return path, tmp_path / "images.npz"


DATA = ("--norm", "2", "--eps", "24/255", "--box", "0,1", "--no-branch")


def test_every_image_of_a_file(images, tmp_path):
    network, data = images
    out = tmp_path / "out"
    result = verify(network, "--data", data, *DATA, "--out", out)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(lines(result)))
    assert [r["index"] for r in rows] == list("01234")
    assert rows[3]["status"] == "refuted" and rows[3]["label"] != rows[3]["prediction"]
    assert list(csv.DictReader((out / "verdicts.csv").open(newline=""))) == rows
    assert json.loads((out / "summary.json").read_text())["instances"] == 5
    held = np.load(out / "counterexamples.npz")
    assert len(held["index"]) == sum(r["status"] == "refuted" for r in rows)
    x = np.load(data)["x"]
    for index, point, output in zip(held["index"], held["x"], held["output"]):
        assert np.linalg.norm(point.astype(float) - x[index]) <= 24 / 255 and point.min() >= 0 and point.max() <= 1
        assert np.array_equal(run_original(network, point[None]).ravel(), output)
        assert output.argmax() != int(rows[index]["label"]) or np.sum(output == output.max()) > 1
    report = (out / "report.html").read_text()
    assert "http" not in report.replace("http-equiv", "") and report.count("<svg") >= 1 and "image/png" in report


def test_norm_inf_mean_and_std(images, tmp_path):
    network, data = images
    options = (
        "--norm",
        "inf",
        "--eps",
        "1/255",
        "--mean",
        "0.5",
        "--std",
        "0.25",
        "--no-branch",
        "--out",
        tmp_path / "o",
    )
    result = verify(network, "--data", data, *options)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(lines(result)))
    x = np.load(data)["x"]
    predicted = [run_original(network, (one[None] - np.float32(0.5)) / np.float32(0.25)).argmax() for one in x]
    assert [int(r["prediction"]) for r in rows] == predicted


def test_started_again_it_goes_on(images, tmp_path):
    network, data = images
    out = tmp_path / "out"
    assert verify(network, "--data", data, *DATA, "--out", out, "--limit", 2).exit_code == 0
    (kept,) = out.glob("verdicts-*.jsonl")
    first = kept.read_text()
    kept.write_text(first + first.splitlines()[0][:40])  # a line that a killed process left
    result = verify(network, "--data", data, *DATA, "--out", out)
    assert result.exit_code == 0, result.output
    assert kept.read_text().startswith(first) and len(list(csv.DictReader(lines(result)))) == 5
    other = verify(network, "--data", data, *DATA[:2], "--eps", "1/255", *DATA[4:], "--out", out)
    assert other.exit_code == 1 and "holds verdicts of something else" in other.output


def test_a_radius_for_every_image(images, tmp_path):
    network, data = images
    out = tmp_path / "out"
    result = verify(network, "--data", data, *DATA, "--out", out, "--limit", 2, "--radius", "0.02")
    assert result.exit_code == 0, result.output
    for row in csv.DictReader(lines(result)):
        assert 0 < float(row["radius"]) < float(row["radius_failed"] or "inf")
    assert (out / "report.html").read_text().count("<svg") == 3


def test_a_corridor_around_the_nominal(tmp_path):
    """A regressor behind two numbers, ranges for each of them."""
    network = mlp(tmp_path / "steer.onnx", inputs=2)
    x = np.array([[1.0, 0.0], [1.1, 0.1]], dtype=np.float32)
    np.savez(tmp_path / "x.npz", x=x, low=x - 0.05, high=x + 0.05)
    for width, word in (("10", "unsat"), ("0.001", "sat")):
        result = verify(network, "--data", tmp_path / "x.npz", "--within", width, "--out", tmp_path / width)
        assert result.exit_code == 0, result.output
        assert [r["word"] for r in csv.DictReader(lines(result))] == [word, word]


def test_one_of_two_questions(network):
    assert verify(network).exit_code == 2
    assert verify(network, "--data", "x.npz", "--property", "p.vnnlib").exit_code == 2
