"""Networks in ONNX files: converted by onnx2pytorch, and compared with onnxruntime before anything is believed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import (
    DataError,
    LirpaLipError,
    MissingDependencyError,
    ShapeError,
    TraceMismatchError,
    UnsupportedOperatorError,
    UntraceableError,
)
from lirpa_lip.local.bounds import network_graph
from lirpa_lip.network.forward_error import first_order
from lirpa_lip.verify.network import Network, network_of

#: protobuf holds no message of this size.
_LARGEST = 2**31 - 1
_KINDS = {1: torch.float32, 11: torch.float64}
#: What is not of first order in the roundoffs, and what graph optimisations of onnxruntime may reorder.
_ROOM = 4.0
_POINTS = 4
#: Operators that bounds have rules for; where something else fails, it is the first of the others that is named.
_BOUNDED = frozenset(
    """
    Abs Add AveragePool BatchNormalization Clip Concat Constant Conv ConvTranspose Cos Div Dropout Elu Exp Flatten
    Gather Gemm GlobalAveragePool Identity LeakyRelu Log MatMul Max MaxPool Min Mul Neg PRelu Pad Pow Reciprocal
    ReduceMean ReduceSum Relu Reshape Shape Sigmoid Sin Slice Softplus Split Sqrt Squeeze Sub Sum Tanh Transpose
    Unsqueeze
    """.split()
)


def read_onnx(path: Path) -> Network:
    """The network of an ONNX file with one input, whose first axis is the batch, and one output.

    Raises:
        MissingDependencyError: the extra ``[onnx]`` is not installed.
        DataError: the file is absent, damaged, or too large.
        ShapeError: several inputs or outputs, or an axis other than the batch whose size is left open.
        UnsupportedOperatorError: an operator that cannot be converted, with its node.
        TraceMismatchError: what was converted is not what onnxruntime computes.
    """
    onnx, runtime, converter = _packages()
    proto = _load(onnx, path)
    name, shape, dtype = _input_of(proto, path)
    _one_output(proto, path)
    session = _session(runtime, proto, path)
    _free_batch(onnx, proto)
    model = _Flat(_converted(converter, proto, path).eval())

    def original(x: Tensor) -> Tensor:
        out = session.run(None, {name: x.detach().to(dtype).numpy()})[0]
        return torch.from_numpy(np.asarray(out)).flatten()

    with _node_named(proto):
        network = network_of(model.to(dtype).eval(), shape, original, path.name)
        _compare(network)
    return network


class _Flat(nn.Module):
    """Reads the output flat, whatever its shape."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out.flatten(1) if out.ndim != 2 else out


def _packages() -> tuple[Any, Any, Any]:
    try:
        import onnx
        import onnx2pytorch
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX files need {error.name}. Install what reads them with:  pip install 'lirpa_lip[onnx]'"
        ) from error
    return onnx, onnxruntime, onnx2pytorch


def _load(onnx: Any, path: Path) -> Any:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if size > _LARGEST:
        raise DataError(f"{path} has {size / 2**30:.1f} GiB; an ONNX file of more than 2 GiB cannot be read.")
    try:
        proto = onnx.load(str(path))
        _check_operators(onnx, proto)
        onnx.checker.check_model(proto)
    except LirpaLipError:
        raise
    except Exception as error:  # protobuf's and onnx's own, of many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} is no valid ONNX file ({first}); export it again.") from error
    return proto


def _check_operators(onnx: Any, proto: Any) -> None:
    """
    Raises:
        UnsupportedOperatorError: one that is no operator of ONNX itself.
    """
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            reason = f"it is none of ONNX's own{f' (domain {node.domain})' if node.domain else ''}"
            raise UnsupportedOperatorError(_called(node), node.op_type, reason=reason)


def _input_of(proto: Any, path: Path) -> tuple[str, tuple[int, ...], torch.dtype]:
    held = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in held]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ShapeError(f"{path} has {len(inputs)} inputs ({names}); a network to be verified has one.")
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in _KINDS:
        raise ShapeError(f"the input {inputs[0].name!r} of {path} is no float32 or float64 tensor; export it as one.")
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    if len(sizes) < 2 or sizes[0] not in (None, 0, 1):
        raise ShapeError(
            f"the input {inputs[0].name!r} of {path} has shape {sizes}; expected (1, …) or (batch, …), a batch of one."
        )
    if any(not size for size in sizes[1:]):
        shown = [axis.dim_param or axis.dim_value or "?" for axis in kind.shape.dim]
        raise ShapeError(
            f"the input {inputs[0].name!r} of {path} leaves sizes open: {shown}; export it with all fixed."
        )
    return inputs[0].name, tuple(int(size) for size in sizes[1:] if size), _KINDS[kind.elem_type]


def _one_output(proto: Any, path: Path) -> None:
    if len(proto.graph.output) != 1:
        names = ", ".join(value.name for value in proto.graph.output)
        raise ShapeError(f"{path} has {len(proto.graph.output)} outputs ({names}); a network to be verified has one.")


def _session(runtime: Any, proto: Any, path: Path) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(f"onnxruntime cannot run {path} ({first}); export it again, for another opset.") from error


def _free_batch(onnx: Any, proto: Any) -> None:
    """Reshapes to ``(1, …)`` keep whatever batch there is, so that many inputs can be tried at once.

    What that changes for a batch of one is compared with onnxruntime like all else.
    """
    targets = {node.input[1] for node in proto.graph.node if node.op_type == "Reshape" and len(node.input) > 1}
    others = {
        name for node in proto.graph.node for i, name in enumerate(node.input) if (node.op_type, i) != ("Reshape", 1)
    }
    for tensor in proto.graph.initializer:
        if tensor.name in targets - others:
            sizes = onnx.numpy_helper.to_array(tensor).copy()
            if len(sizes) > 1 and sizes[0] == 1 and all(size > 0 for size in sizes):
                sizes[0] = -1
                tensor.CopyFrom(onnx.numpy_helper.from_array(sizes, tensor.name))
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output[0] in targets - others:
            for attribute in node.attribute:
                if attribute.name == "value":
                    sizes = onnx.numpy_helper.to_array(attribute.t).copy()
                    if sizes.ndim == 1 and len(sizes) > 1 and sizes[0] == 1 and all(size > 0 for size in sizes):
                        sizes[0] = -1
                        attribute.t.CopyFrom(onnx.numpy_helper.from_array(sizes, attribute.t.name))


def _converted(converter: Any, proto: Any, path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = converter.ConvertModel(proto)
    except Exception as error:
        node = _suspect(proto)
        if node is None:
            raise DataError(f"{path} cannot be converted ({type(error).__name__}: {error}).") from error
        reason = f"onnx2pytorch cannot convert it ({error}); export the network with other operators"
        raise UnsupportedOperatorError(_called(node), node.op_type, reason=reason) from error
    return model


def _suspect(proto: Any) -> Any:
    """The first node that is none of those which bounds have rules for."""
    return next((node for node in proto.graph.node if node.op_type not in _BOUNDED), None)


@contextmanager
def _node_named(proto: Any) -> Iterator[None]:
    """An operator without bounds is named by the file's own node, not by what it was converted to."""
    try:
        yield
    except (UnsupportedOperatorError, UntraceableError) as error:
        node = _suspect(proto)
        if node is None:
            raise
        raise UnsupportedOperatorError(_called(node), node.op_type, reason=str(error).rstrip(".")) from error


def _called(node: Any) -> str:
    return str(node.name or node.output[0])


@torch.no_grad()
def _compare(network: Network) -> None:
    """
    Raises:
        TraceMismatchError: at a random input the converted network is further from onnxruntime than rounding explains.
        UnsupportedOperatorError: an operator that bounds have no rule for.
    """
    graph = network_graph(network.bounded(LocalLipConfig()), torch.float64)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1.0, 1.0, 10.0)[:_POINTS]:
        x = scale * torch.randn(1, *network.shape, generator=generator).to(network.dtype)
        try:
            expected = network.original(x).double()
        except LirpaLipError:
            raise
        except Exception as error:
            raise DataError(f"onnxruntime fails on an input of shape {tuple(x.shape)} ({error}).") from error
        found = graph.values(x.double())[graph.output].flatten()
        if found.shape != expected.shape:
            raise ShapeError(f"{network.name} gives {len(expected)} outputs, what was converted of it {len(found)}.")
        rows = torch.eye(len(found), dtype=torch.float64)
        points = x.double().expand(len(found), *network.shape)
        room = _ROOM * first_order(graph, points, rows, torch.float64, network.dtype) + 1e-30
        apart = (found - expected).abs()
        worst = int(torch.where(apart.isnan(), torch.inf, apart - room).argmax())
        if not bool((apart <= room).all()):
            raise TraceMismatchError(
                *(found[worst].item(), expected[worst].item(), room[worst].item()),
                reason=f"onnx2pytorch has converted {network.name} to another network than onnxruntime runs; export it "
                "with other operators, or for another opset.",
            )
