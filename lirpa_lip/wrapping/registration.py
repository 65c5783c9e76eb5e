"""The operators auto_LiRPA's installed version cannot trace, or computes wrongly, for the modules that ask for them.

`operators` is what our ``BoundedModule`` passes to auto_LiRPA as ``custom_ops``, per module: auto_LiRPA's own map,
which all modules share, stays as it is. For every ONNX operator below, auto_LiRPA's own class is used wherever
`native` says that it is right for the operator's attributes, and a class made from our adapter elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from auto_LiRPA import bound_ops, register_custom_op
from auto_LiRPA.bound_op_map import bound_op_map
from auto_LiRPA.bound_ops import Bound, BoundActivation
from auto_LiRPA.parse_graph import parse_module

from lirpa_lip.errors import ConfigError, UnsupportedOperatorError
from lirpa_lip.network.adapters.table import ADAPTERS, RELAXED
from lirpa_lip.network.emit import depends_on_input, may_vary
from lirpa_lip.wrapping import constant_operand, native
from lirpa_lip.wrapping.clipped_relu_bound import BoundClippedRelu
from lirpa_lip.wrapping.convolution_bound import BoundConv
from lirpa_lip.wrapping.max_pool_bound import BoundMaxPool
from lirpa_lip.wrapping.maxmin_bound import BoundClippedMaxMin, BoundMaxMin
from lirpa_lip.wrapping.native import Native
from lirpa_lip.wrapping.quotient_bound import BoundDiv
from lirpa_lip.wrapping.traced_activation import activation_class
from lirpa_lip.wrapping.traced_operator import Adapter, operator_class
from lirpa_lip.wrapping.unsqueeze_bound import BoundUnsqueeze, one_axis


class Missing(NamedTuple):
    """An operator auto_LiRPA lacks in some version, or for some attributes.

    Attributes:
        key: name of its adapter in the operator table, and of its class.
        elementwise: whether it is one activation.
        native: whether auto_LiRPA's own class, where there is one, is right for these attributes and inputs.
        own: the class used elsewhere, if it is not made from the adapter.
    """

    key: str
    elementwise: bool
    native: Native = lambda attr, inputs: True
    own: Callable[..., Bound] | None = None


def _convolution(attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> Bound:
    """Over images the class that knows patches; along one axis or three, which patches do not know, the adapter's."""
    pads = attr.get("pads", [0, 1])  # without any, padding is given by name, which the adapter refuses
    if len(attr["kernel_shape"]) == 2 and pads[:2] == pads[2:]:
        return BoundConv(attr, inputs, output_index, options)
    return operator_class("BoundConv", ADAPTERS["BoundConv"])(attr, inputs, output_index, options)


def _own_division(attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> Bound:
    scales = depends_on_input(inputs[0]) and not may_vary(inputs[1])
    return (constant_operand.BoundDiv if scales else BoundDiv)(attr, inputs, output_index, options)


#: By ONNX name.
MISSING: dict[str, Missing] = {
    # the ends are attributes before opset 11, where 0.7's class fails, and 0.3 has none
    "onnx::Clip": Missing("BoundClip", True, lambda attr, inputs: len(inputs) == 3),
    "onnx::Elu": Missing("BoundElu", True),
    "onnx::Selu": Missing("BoundSelu", True),
    "onnx::Erf": Missing("BoundErf", True),
    "onnx::PRelu": Missing("BoundPRelu", True),
    "onnx::HardSigmoid": Missing("BoundHardSigmoid", True),
    "onnx::HardSwish": Missing("BoundHardSwish", True),
    "onnx::Softplus": Missing(
        "BoundSoftplus", True, lambda *_: bound_ops.BoundSoftplus.bound_relax is not BoundActivation.bound_relax
    ),
    # the widths are an attribute before opset 11, which theirs does not read
    "onnx::Pad": Missing("BoundPad", False, lambda attr, inputs: "pads" not in attr and attr["mode"] == "constant"),
    "onnx::Resize": Missing("BoundResize", False, native.never),
    "onnx::Upsample": Missing("BoundResize", False, native.never),
    "onnx::Gemm": Missing("BoundLinear", False, native.plain_linear),
    "onnx::MatMul": Missing("BoundMatMul", False, native.constant_matrix),
    # theirs has invalid patches for groups and dilation, and takes one axis' dilation for both; one axis is known to
    # 0.7 only, and three to neither
    "onnx::Conv": Missing("BoundConv", False, native.never, _convolution),
    # theirs knows square kernels without padding only, and loses its inserted zeros in patches
    "onnx::ConvTranspose": Missing("BoundConvTranspose", False, native.never),
    # theirs mistakes the axes of a constant for those of the samples
    "onnx::Add": Missing("BoundAdd", False, native.no_constant, constant_operand.BoundAdd),
    "onnx::Sub": Missing("BoundSub", False, native.no_constant, constant_operand.BoundSub),
    "onnx::Mul": Missing("BoundMul", False, native.no_constant, constant_operand.BoundMul),
    "onnx::Div": Missing("BoundDiv", False, native.division, _own_division),
    "onnx::Concat": Missing("BoundConcat", False, native.no_constant, constant_operand.BoundConcat),
    # theirs always counts padding in, ignores ceil_mode, and its CROWN takes the stride for the kernel, and the height
    # for the width of what no window reaches
    "onnx::AveragePool": Missing("BoundAveragePool", False, native.never),
    # theirs has invalid forward bounds, and in 0.3 fails in patches mode
    "onnx::LeakyRelu": Missing("BoundLeakyRelu", True, native.never),
    "onnx::Gather": Missing("BoundGather", False, native.in_shape_arithmetic_or(native.one_position)),
    "onnx::Slice": Missing("BoundSlice", False, native.in_shape_arithmetic_or(native.step_one)),
    # 0.3's has no bounds at all
    "onnx::Expand": Missing("BoundExpand", False, native.in_shape_arithmetic_or(native.never)),
    "onnx::ReduceMean": Missing("BoundReduceMean", False, native.over_one_axis),
    "onnx::ReduceMax": Missing("BoundReduceMax", False, native.never),
    "onnx::ReduceMin": Missing("BoundReduceMin", False, native.never),
    # theirs gives numbers outside the domain (0.3's square root inside, too: its tangent falls), or no clear error
    "onnx::Sqrt": Missing("BoundSqrt", True, native.constant),
    "onnx::Log": Missing("BoundLog", True, native.constant),
    "onnx::Reciprocal": Missing("BoundReciprocal", True, native.constant),
    "onnx::Pow": Missing("BoundPow", True, native.odd_power),
    # theirs is violated by intervals around 0, in 0.7
    "onnx::Tan": Missing("BoundTan", True, native.constant),
    # theirs divides by widths to which a small number is added, and is then off by 1e-10 on narrow intervals
    "onnx::Exp": Missing("BoundExp", True, native.constant),
    # theirs keeps tables for all modules in the precision of the first: of another it fails
    "onnx::Sin": Missing("BoundSin", True, native.constant),
    "onnx::Cos": Missing("BoundCos", True, native.constant),
    "onnx::Asin": Missing("BoundAsin", True),
    "onnx::Acos": Missing("BoundAcos", True),
    "onnx::Tile": Missing("BoundTile", False, native.never),
    "onnx::Where": Missing("BoundWhere", False, native.constant),
    "onnx::ReduceL2": Missing("BoundReduceL2", False),
    "onnx::InstanceNormalization": Missing("BoundInstanceNormalization", False),
    # theirs adds a small number to a sum of exponentials, on both sides of its bounds
    "onnx::Softmax": Missing("BoundSoftmax", False, native.never),
    "onnx::LogSoftmax": Missing("BoundLogSoftmax", False),
    "onnx::ReduceLogSumExp": Missing("BoundReduceLogSumExp", False),
    # 0.7 writes those with a constant as a ReLU behind it, which cancels the value where the constant is far away
    "onnx::Max": Missing("BoundMax", False, native.no_constant),
    "onnx::Min": Missing("BoundMin", False, native.no_constant),
}


#: PyTorch operators without an ONNX form, which auto_LiRPA meets as ``aten::ATen``, by their own name.
ATEN: dict[str, str] = {
    "adaptive_avg_pool1d": "BoundAdaptiveAveragePool",
    "adaptive_avg_pool2d": "BoundAdaptiveAveragePool",
    "upsample_linear1d": "BoundUpsampleLinear",
    "upsample_bilinear2d": "BoundUpsampleBilinear",
    "upsample_trilinear3d": "BoundUpsampleTrilinear",
    "upsample_bicubic2d": "BoundUpsampleBicubic",
    "_upsample_bilinear2d_aa": "BoundUpsampleBilinearSmoothed",
    "_upsample_bicubic2d_aa": "BoundUpsampleBicubicSmoothed",
    "cumsum": "BoundCumSum",
    "channel_shuffle": "BoundChannelShuffle",
    "im2col": "BoundUnfold",
    "asinh": "BoundAsinh",
    "acosh": "BoundAcosh",
    "atanh": "BoundAtanh",
}
#: Those of them that are one activation.
_ATEN_ACTIVATIONS = {"asinh", "acosh", "atanh"}


class BoundNothing(bound_ops.BoundPrimConstant):
    """An argument that is ``None``; 0.3 wants intervals of it where they are wanted of what reads it."""

    def interval_propagate(self, *v: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.forward(), self.forward()


def _maker(theirs: type[Bound] | None, ours: Callable[..., Bound], is_right: Native) -> Callable[..., Bound]:
    """What is called in place of a class: theirs where it is right and accepts the attributes, else ours.

    With ``loss_fusion`` auto_LiRPA's classes for exp, log and the like are parts of one loss, and stay.
    """

    def make(attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> Bound:
        fused = bool((options or {}).get("loss_fusion", False))
        if theirs is not None and (fused or is_right(attr, inputs)):
            try:
                return theirs(attr, inputs, output_index, options)
            except (AssertionError, IndexError, KeyError, NotImplementedError):
                pass  # that is how it says that it does not know these attributes
        return ours(attr, inputs, output_index, options)

    make.makes = ours  # type: ignore[attr-defined]
    return make


def _aten(attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> Bound:
    """What is called for ``aten::ATen``: ours, theirs if there is one, else an error that names the operator."""
    operator = attr["operator"]
    theirs = getattr(bound_ops, f"BoundATen{operator.capitalize()}", None)
    if operator in ATEN:
        make = activation_class if operator in _ATEN_ACTIVATIONS else operator_class
        return make(ATEN[operator], ADAPTERS[ATEN[operator]])(attr, inputs, output_index, options)
    if operator == "heaviside":  # theirs takes the value at 0 for 1
        key = "BoundATenHeaviside"
        return activation_class(key, RELAXED[key])(attr, inputs, output_index, options)
    if theirs is not None:
        return theirs(attr, inputs, output_index, options)
    raise UnsupportedOperatorError(f"aten::{operator}", f"aten::{operator}", ADAPTERS)


_aten.makes = ATEN  # type: ignore[attr-defined]


def unsupported_operators(model: Any, global_input: Any, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(node, ONNX operator) of what auto_LiRPA has no class for in a model it refused; its options may name more."""
    inputs = global_input if isinstance(global_input, tuple) else (global_input,)
    nodes, *_ = parse_module(model, inputs)
    known = {**bound_op_map, **operators(options.get("custom_ops"))}
    return [
        (node.name, node.op)
        for node in nodes
        if node.op not in known and not hasattr(bound_ops, f"Bound{node.op.removeprefix('onnx::')}")
    ]


def register_operator(onnx: str, adapter: Adapter, elementwise: bool = False, key: str | None = None) -> None:
    """Teaches both sides a new operator: its adapter joins the operator table, and auto_LiRPA gets a class made of it.

    Args:
        onnx: the name it is traced by, ``"<domain>::<Operator>"``.
        adapter: ``(builder, traced) -> name`` of the last node it emits (docs/extending.md).
        elementwise: the adapter emits one activation of its first input, which then has optimisable lines and keeps
            convolutions in patches mode; otherwise CROWN is a walk through whatever the adapter emits.
        key: name in the operator table and of the class; by default ``"Bound<Operator>"``.

    Raises:
        ConfigError: the table has another adapter of that name.
    """
    key = key or f"Bound{onnx.split('::')[-1]}"
    if ADAPTERS.get(key, adapter) is not adapter:
        raise ConfigError(f"the operator table has an adapter for {key!r} already; give another key.")
    ADAPTERS[key] = adapter
    register_custom_op(onnx, (activation_class if elementwise else operator_class)(key, adapter))


#: Classes that know more than an adapter says.
OWN: dict[str, type[Bound]] = {
    "lirpa_lip::ClippedRelu": BoundClippedRelu,
    "lirpa_lip::MaxMin": BoundMaxMin,
    "lirpa_lip::ClippedMaxMin": BoundClippedMaxMin,
    # theirs ignores dilation and ceil_mode, knows two axes, in CROWN refuses windows that overlap, puts slopes on
    # the wrong pixels where there is padding, and its forward bounds are violated
    "onnx::MaxPool": BoundMaxPool,
}


def _build() -> dict[str, Callable[..., Bound]]:
    found: dict[str, Callable[..., Bound]] = {
        **OWN,
        "aten::ATen": _aten,
        "prim::Constant": BoundNothing,
        "onnx::Unsqueeze": _maker(bound_ops.BoundUnsqueeze, BoundUnsqueeze, one_axis),
    }
    for onnx, (key, elementwise, is_right, own) in MISSING.items():
        theirs = bound_op_map.get(onnx) or getattr(bound_ops, key, None)
        ours = own or (activation_class if elementwise else operator_class)(key, {**ADAPTERS, **RELAXED}[key])
        found[onnx] = _maker(theirs, ours, is_right)
    return found


_OPERATORS = _build()


def operators(custom: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """By ONNX name, what a module is to use in place of auto_LiRPA's own classes; ``custom`` ones go first.

    An operator that the user has registered with auto_LiRPA for all modules stays the user's.
    """
    theirs = {name for name, made in bound_op_map.items() if not _from_auto_lirpa(made)}
    ours = {name: make for name, make in _OPERATORS.items() if name not in theirs}
    return {**ours, **(custom or {})}


def _from_auto_lirpa(made: Any) -> bool:
    return str(getattr(made, "__module__", "")).split(".")[0] == "auto_LiRPA"
