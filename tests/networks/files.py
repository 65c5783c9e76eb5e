"""Small ONNX files, written operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx2pytorch")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def tensor(name: str, values) -> object:
    return numpy_helper.from_array(np.asarray(values), name)


def weights(name: str, *shape: int, seed: int = 0, scale: float = 0.5) -> object:
    return tensor(name, (np.random.RandomState(seed).randn(*shape) * scale).astype(np.float32))


def save(
    path: Path,
    nodes: Sequence[object],
    initializers: Sequence[object],
    shape: Sequence[int | str],
    outputs: int,
    inputs: Sequence[str] = ("x",),
    results: Sequence[str] = ("y",),
) -> Path:
    ins = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in inputs]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [shape[0], outputs]) for name in results]
    graph = helper.make_graph(list(nodes), "network", ins, outs, list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def mlp(path: Path, inputs: int = 2, hidden: int = 8, outputs: int = 1, seed: int = 0) -> Path:
    """Gemm – Relu – Gemm on flat inputs."""
    held = [
        *(weights("w0", hidden, inputs, seed=seed, scale=1.0), weights("b0", hidden, seed=seed + 1)),
        *(weights("w1", outputs, hidden, seed=seed + 2, scale=1.0), weights("b1", outputs, seed=seed + 3)),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z"], name="first", transB=1),
        helper.make_node("Relu", ["z"], ["a"], name="relu"),
        helper.make_node("Gemm", ["a", "w1", "b1"], ["y"], name="last", transB=1),
    ]
    return save(path, nodes, held, (1, inputs), outputs)


def convolutional(path: Path, seed: int = 0) -> Path:
    """Sub – Conv – Relu – Reshape to (1, …) – MatMul – Add on images (1, 6, 6), three classes."""
    held = [
        *(weights("m", 1, 1, 6, 6, seed=seed), weights("w0", 3, 1, 3, 3, seed=seed + 1), weights("b0", 3, seed=seed)),
        *(tensor("s", np.array([1, 27], dtype=np.int64)), weights("w1", 27, 3, seed=seed + 2), weights("b1", 3)),
    ]
    nodes = [
        helper.make_node("Sub", ["x", "m"], ["c"]),
        helper.make_node("Conv", ["c", "w0", "b0"], ["z"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["z"], ["a"]),
        helper.make_node("Reshape", ["a", "s"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["p"]),
        helper.make_node("Add", ["p", "b1"], ["y"]),
    ]
    return save(path, nodes, held, (1, 1, 6, 6), 3)


BOX = """(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(assert (>= X_0 0.1)) (assert (<= X_0 0.3))
(assert (and (>= X_1 -0.1) (<= X_1 0.2)))
"""
"""Inputs of `mlp`; what is asked of Y_0 is to be added."""


def run_original(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]
