"""Bad input is one clear error, and what was found before is kept."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import files
from networks.files import BOX, convolutional, mlp, save, tensor, weights
from onnx import helper

from lirpa_lip.cli import main
from lirpa_lip.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LirpaLipError,
    NonFiniteError,
    ShapeError,
    TraceMismatchError,
    UnsupportedOperatorError,
    UntrustedCodeError,
)
from lirpa_lip.verify.data import read_samples
from lirpa_lip.verify.readers import onnx as onnx_reader
from lirpa_lip.verify.readers import read_network
from lirpa_lip.verify.vnnlib import read_vnnlib


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="there is no network"):
        read_network(tmp_path / "none.onnx")
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "none.onnx"), "--property", "p.vnnlib"])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1


def test_a_corrupt_file(tmp_path):
    path = mlp(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataError, match="no valid ONNX file"):
        read_network(path)


def test_a_huge_file(tmp_path, monkeypatch):
    path = mlp(tmp_path / "net.onnx")
    monkeypatch.setattr(onnx_reader, "_LARGEST", 100)
    with pytest.raises(DataError, match="more than 2 GiB"):
        read_network(path)


@pytest.mark.parametrize("operator", ["Hardmax", "Mystery"])
def test_an_unsupported_operator_is_named_with_its_node(tmp_path, operator):
    nodes = [helper.make_node(operator, ["x"], ["y"], name="the_node")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3])],
        [helper.make_tensor_value_info("y", 1, [1, 3])],
    )
    path = tmp_path / "hardmax.onnx"
    files.onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    with pytest.raises(UnsupportedOperatorError, match=f"{operator} at node 'the_node'"):
        read_network(path)


def test_open_sizes(tmp_path):
    path = save(tmp_path / "d.onnx", [helper.make_node("Relu", ["x"], ["y"])], [], ("batch", "width"), 3)
    with pytest.raises(ShapeError, match="leaves sizes open"):
        read_network(path)


def test_several_inputs_and_outputs(tmp_path):
    path = save(tmp_path / "two.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], [], (1, 3), 3, inputs=("x", "z"))
    with pytest.raises(ShapeError, match="2 inputs"):
        read_network(path)
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    path = save(tmp_path / "out.onnx", nodes, [], (1, 3), 3, results=("y", "z"))
    with pytest.raises(ShapeError, match="2 outputs"):
        read_network(path)


def test_a_conversion_that_is_another_network(tmp_path, monkeypatch):
    path = mlp(tmp_path / "net.onnx", inputs=3, outputs=2)
    convert = onnx_reader._converted

    def wrong(*arguments):
        model = convert(*arguments)
        with torch.no_grad():
            next(model.parameters()).view(-1)[0].mul_(1 + 1e-4)
        return model

    read_network(path)
    monkeypatch.setattr(onnx_reader, "_converted", wrong)
    with pytest.raises(TraceMismatchError, match="another network than onnxruntime runs"):
        read_network(path)


def test_weights_that_are_not_finite(tmp_path):
    held = [tensor("w", np.full((3, 2), np.nan, dtype=np.float32)), weights("b", 2)]
    path = save(tmp_path / "nan.onnx", [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], held, (1, 3), 2)
    with pytest.raises(NonFiniteError):
        read_network(path)


LAST = "(assert (<= Y_0 0))"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOX + "(assert (<= Z_0 0))", "unknown variable"),
        (BOX + "(assert (<= Y_7 0))", "never declared"),
        ("(declare-const X_2 Real)" + BOX + LAST, "network has 2 inputs"),
        ("(declare-const Y_1 Real)" + BOX + LAST, "network has 1 outputs"),
        (BOX + "(assert (>= X_0 0.5))" + LAST, "contradict each other"),
        (BOX + "(assert (<= Y_0 nan))", "unknown variable"),
        (BOX + "(assert (<= Y_0 1e))", "no finite number"),
        (BOX + "(assert (<= (* Y_0 Y_0) 1))", "products of variables"),
        (BOX + "(assert (<= (+ X_0 X_1) 1))" + LAST, "no box"),
        (BOX + "(assert (<= Y_0 X_0))", "inputs and outputs at once"),
        (BOX, "says nothing of the outputs"),
        (BOX + "(assert (<= Y_0 0)", "never closed"),
        (BOX + LAST + ")", "too many"),
        (BOX.replace("(assert (>= X_0 0.1))", "") + LAST, "X_0 is not bounded below"),
        (BOX + "(check-sat)" + LAST, "no command"),
        ("(vnnlib-version <2.0>) (declare-network N (declare-input X float32 [1,2])", "error"),
    ],
)
def test_properties_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_vnnlib(path, (2,), 1, torch.float32)


TWO_INPUTS = """(vnnlib-version <2.0>)
(declare-network N (declare-input A float32 [1,2]) (declare-input B float32 [1,2]) (declare-output Y float32 [1,1]))
(assert (<= Y[0,0] 0.0))
"""


def test_a_property_of_several_inputs(tmp_path):
    pytest.importorskip("vnnlib")
    (tmp_path / "p.vnnlib").write_text(TWO_INPUTS)
    with pytest.raises(DataError, match="2 inputs, which the network lacks"):
        read_vnnlib(tmp_path / "p.vnnlib", (2,), 1, torch.float32)


def test_data_that_does_not_fit(tmp_path):
    rng = np.random.RandomState(0)
    path = tmp_path / "x.npz"
    np.savez(path, x=rng.rand(2, 6, 6, 1).astype(np.float32))
    with pytest.raises(DataError, match="channels last"):
        read_samples(str(path), (1, 6, 6))
    np.savez(path, x=rng.rand(2, 1, 5, 6).astype(np.float32))
    with pytest.raises(DataError, match="network takes"):
        read_samples(str(path), (1, 6, 6))
    np.savez(path, x=np.full((2, 1, 6, 6), np.inf, dtype=np.float32))
    with pytest.raises(NonFiniteError):
        read_samples(str(path), (1, 6, 6))
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(str(path), (1, 6, 6))
    np.savez(path, z=np.zeros(3))
    with pytest.raises(DataError, match="inputs are looked for"):
        read_samples(str(path), (1, 6, 6))
    np.savez(path, x=np.zeros((2, 36), dtype=np.float32), y=np.zeros(3, dtype=int))
    with pytest.raises(DataError, match="3 labels for 2 inputs"):
        read_samples(str(path), (1, 6, 6))
    path.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(str(path), (1, 6, 6))
    with pytest.raises(DataError, match="no file or folder"):
        read_samples("nowhere", (1, 6, 6))


def test_weights_alone(tmp_path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="--arch"):
        read_network(tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="--input-shape"):
        read_network(tmp_path / "w.pth", arch="torch.nn:Identity")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "pickled.pth")
    with pytest.raises(DataError, match="more than tensors"):
        read_network(tmp_path / "pickled.pth", arch="torch.nn:Identity", shape=(2,))
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged"):
        read_network(tmp_path / "w.safetensors", arch="torch.nn:Identity", shape=(2,))


def test_an_exported_program_is_not_evaluated_unasked(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 3).eval(), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(UntrustedCodeError):
        read_network(tmp_path / "net.pt2")
    assert read_network(tmp_path / "net.pt2", trust_arch=True).shape == (2,)


@pytest.fixture
def call(tmp_path):
    path = convolutional(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.RandomState(0).rand(3, 1, 6, 6).astype(np.float32), y=[0, 1, 2])

    def run(*options):
        command = ["verify", path, "--data", tmp_path / "x.npz", "--no-branch", "--out", tmp_path / "out", *options]
        return CliRunner().invoke(main, [str(part) for part in command])

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eps", "0.1", "--box", "1,0"), "no box"),
        (("--eps", "0.1", "--box", "0,0.5"), "lies outside the box"),
        (("--eps", "nan"), "no number"),
        (("--eps", "0.1", "--mean", "0.5,0.5", "--std", "1,1"), "has 1 channels"),
        (("--eps", "0.1", "--mean", "0.5"), "mean and --std"),
        ((), "give --eps"),
    ],
)
def test_options_that_cannot_be(call, options, message):
    result = call(*options)
    assert result.exit_code != 0 and message in result.output


def test_a_label_that_is_no_class(call, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 1, 6, 6), dtype=np.float32), y=[3])
    result = call("--eps", "0.1")
    assert result.exit_code == 1 and "none of the network's 3 classes" in result.output


def test_a_full_disk_keeps_what_was_found(call, tmp_path, monkeypatch):
    from lirpa_lip.verify import rows

    before, written = rows._to_json, []

    def full(entry):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(entry.index)
        return before(entry)

    monkeypatch.setattr(rows, "_to_json", full)
    result = call("--eps", "0.1")
    assert result.exit_code == 1 and "the disk is full" in result.output and "are kept" in result.output
    monkeypatch.undo()
    assert list(rows.read_entries(tmp_path / "out")) == [0]
    assert call("--eps", "0.1").exit_code == 0
    assert list(rows.read_entries(tmp_path / "out")) == [0, 1, 2]


def test_other_data_in_the_folder(call, tmp_path):
    assert call("--eps", "0.1").exit_code == 0
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 6, 6), dtype=np.float32), y=[0, 1, 2])
    result = call("--eps", "0.1")
    assert result.exit_code == 1 and "verdicts of other data" in result.output


def test_all_of_them_are_of_the_package():
    for kind in (CheckpointError, ConfigError, DataError, NonFiniteError, ShapeError):
        assert issubclass(kind, LirpaLipError)
