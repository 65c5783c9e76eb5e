"""Operators of a trace put in a form whose lowering to ONNX keeps all they say, before it is lowered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lirpa_lip.wrapping.trace import masked
from lirpa_lip.wrapping.trace.compositions import COMPOSITIONS
from lirpa_lip.wrapping.trace.dependence import Dependence, argument, dtype, sizes
from lirpa_lip.wrapping.trace.distances import DISTANCES
from lirpa_lip.wrapping.trace.einsum import einsum
from lirpa_lip.wrapping.trace.elementary import ELEMENTARY
from lirpa_lip.wrapping.trace.moves import MOVES
from lirpa_lip.wrapping.trace.recurrent import CELLS, unroll
from lirpa_lip.wrapping.trace.single import Singles

Rewrite = Callable[["Rewriter", Any], None]


class Rewriter:
    """Rewrites the nodes of one ``torch._C.Graph``; what became unused is left to dead code elimination.

    Args:
        graph: the trace.
        depends: what its values depend on.
        parameters: values of the graph's other inputs, by name.
    """

    def __init__(self, graph: Any, depends: Dependence, parameters: Mapping[str, Any] | None = None) -> None:
        self.graph, self.depends, self.parameters = graph, depends, parameters or {}
        first = sizes(next(iter(graph.inputs())))
        self.batch = first[0] if first else None

    def run(self) -> None:
        Singles(self).run()
        for node in list(self.graph.nodes()):
            rewrite = REWRITES.get(node.kind())
            if rewrite is not None and not all(self.depends.constant(v) for v in node.inputs()):
                self.graph.setInsertPoint(node)
                rewrite(self, node)
        Singles(self).run()  # of those that were made meanwhile
        self.graph.setInsertPoint(self.graph.return_node())

    def constant(self, value: Any) -> Any:
        return self.graph.insertConstant(value)

    def insert(self, kind: str, arguments: list[Any], like: torch.Tensor | Any) -> Any:
        """A new operator before the present one; ``like`` is a value of its type, or an example of its result."""
        node = self.graph.create(kind, list(arguments), 1)
        self.graph.insertNode(node)
        if isinstance(like, torch.Tensor):
            node.output().setType(torch._C.TensorType.create_from_tensor(like))
        else:
            node.output().setType(like.type())
        self.depends.visit(node)  # else what is made of it would pass for a constant
        return node.output()

    def integers(self, values: list[int]) -> Any:
        """A list of integers, as an argument."""
        return self._listed([self.constant(v) for v in values], torch._C.IntType.get())

    def numbers(self, values: list[float]) -> Any:
        """A list of numbers, as an argument."""
        return self._listed([self.constant(v) for v in values], torch._C.FloatType.get())

    def tensors(self, values: list[Any]) -> Any:
        """A list of tensors, as an argument."""
        return self._listed(values, torch._C.TensorType.get())

    def _listed(self, values: list[Any], kind: Any) -> Any:
        node = self.graph.create("prim::ListConstruct", values, 1)
        self.graph.insertNode(node)
        node.output().setType(torch._C.ListType(kind))
        self.depends.visit(node)
        return node.output()

    def replace(self, node: Any, value: Any) -> None:
        node.output().replaceAllUsesWith(value)


def _size(rewriter: Rewriter, node: Any) -> None:
    """The length of an axis of a sample, which the traced shape fixes."""
    axis, shape = argument(node, 1), sizes(next(iter(node.inputs())))
    if not isinstance(axis, int) or shape is None or not -len(shape) <= axis < len(shape):
        return
    axis %= len(shape)
    if axis and shape[0] == rewriter.batch:
        rewriter.replace(node, rewriter.constant(shape[axis]))


def _reshape(rewriter: Rewriter, node: Any) -> None:
    """A reshape that keeps the batch axis, as one to the traced shape: then no later batch size changes it."""
    given, made = sizes(next(iter(node.inputs()))), sizes(node.output())
    if not given or not made or given[0] != rewriter.batch or made[0] != rewriter.batch:
        return
    if node.kind() == "aten::flatten" and argument(node, 1) == 1 and argument(node, 2) in (-1, len(given) - 1):
        return  # ONNX has a form of its own
    if node.kind() == "aten::squeeze" and isinstance(argument(node, 1), int):
        return
    shape = argument(node, 1)
    if shape is not ... and node.kind() in ("aten::view", "aten::reshape") and list(shape) == [-1, *made[1:]]:
        return
    arguments = [next(iter(node.inputs())), rewriter.integers([-1, *made[1:]])]
    rewriter.replace(node, rewriter.insert("aten::reshape", arguments, node.output()))


def _reduction(rewriter: Rewriter, node: Any) -> None:
    """Axes counted from the front, as auto_LiRPA's rules count them."""
    axes, shape = argument(node, 1), sizes(next(iter(node.inputs())))
    if isinstance(axes, list) and shape and any(a < 0 for a in axes):
        node.replaceInput(1, rewriter.integers([a % len(shape) for a in axes]))
    if node.kind() == "aten::amax":
        masked.reduction(rewriter, node)


#: Operators that broadcast a constant over the batch.
_BROADCAST = {f"aten::{n}" for n in "add sub rsub mul div maximum minimum linear addmm".split()}


def _filled(rewriter: Rewriter, node: Any) -> None:
    """Zeros and ones like the input, as one sample of them where they are broadcast: no later batch size changes it."""
    shape, kind = sizes(node.output()), dtype(node.output())
    uses = [use.user for use in node.output().uses()]
    if not shape or kind is None or shape[0] != rewriter.batch or not all(u.kind() in _BROADCAST for u in uses):
        return
    fill = {"ones": 1.0, "zeros": 0.0}.get(
        node.kind().removeprefix("aten::").removeprefix("new_").removesuffix("_like")
    )
    if fill is None:
        fill = argument(node, 2 if node.kind() == "aten::new_full" else 1)
    if isinstance(fill, (int, float)):
        rewriter.replace(node, rewriter.constant(torch.full((1, *shape[1:]), fill, dtype=kind)))


def _dropout(rewriter: Rewriter, node: Any) -> None:
    """Nothing, where it is off or its share is zero."""
    if argument(node, 2) is False or argument(node, 1) == 0:
        rewriter.replace(node, next(iter(node.inputs())))


def _transposed(rewriter: Rewriter, weight: Any) -> Any | None:
    shape, kind = sizes(weight), dtype(weight)
    if shape is None or kind is None or len(shape) != 2 or not rewriter.depends.constant(weight):
        return None
    return rewriter.insert("aten::t", [weight], torch.empty(shape[1], shape[0], dtype=kind))


def _product(rewriter: Rewriter, node: Any) -> None:
    """``torch.mm(x, W)`` as a linear layer of the weight ``Wᵀ``."""
    x, weight = node.inputs()
    if rewriter.depends.varies(x) and (sizes(x) or [-1])[0] == rewriter.batch:
        turned = _transposed(rewriter, weight)
        if turned is not None:
            none = rewriter.constant(None)
            rewriter.replace(node, rewriter.insert("aten::linear", [x, turned, none], node.output()))


def _affine_product(rewriter: Rewriter, node: Any) -> None:
    """``torch.addmm(b, x, W)`` likewise; other factors than 1 stay with ONNX' Gemm."""
    bias, x, weight = list(node.inputs())[:3]
    shape, made = sizes(bias), sizes(node.output())
    plain = argument(node, 3) == 1 and argument(node, 4) == 1 and rewriter.depends.constant(bias)
    if not plain or not rewriter.depends.varies(x) or not shape or not made or math.prod(shape) != made[1]:
        return
    turned = _transposed(rewriter, weight)
    if turned is None:
        return
    if len(shape) > 1:
        flat = torch.empty(made[1], dtype=dtype(bias))
        bias = rewriter.insert("aten::reshape", [bias, rewriter.integers([-1])], flat)
    rewriter.replace(node, rewriter.insert("aten::linear", [x, turned, bias], node.output()))


def _average_pool(rewriter: Rewriter, node: Any) -> None:
    """``divisor_override``, which ONNX lacks: the plain average times the window's size over the divisor."""
    divisor, window = argument(node, 6), argument(node, 1)
    if not isinstance(divisor, int) or window is ... or argument(node, 4) is not False:
        return
    axes = 2 if node.kind() == "aten::avg_pool2d" else 3
    size = math.prod(window) if len(window) == axes else window[0] ** axes
    arguments = [*list(node.inputs())[:5], rewriter.constant(True), rewriter.constant(None)]
    pooled = rewriter.insert(node.kind(), arguments, node.output())
    whole = torch.ones((), dtype=dtype(node.output()))
    if size != divisor:  # two operators, since the quotient need not be a number of the network's precision
        pooled = rewriter.insert("aten::mul", [pooled, rewriter.constant(size * whole)], node.output())
        pooled = rewriter.insert("aten::div", [pooled, rewriter.constant(divisor * whole)], node.output())
    rewriter.replace(node, pooled)


def _convolution_mode(rewriter: Rewriter, node: Any) -> None:
    """``padding="same"`` and ``"valid"`` as numbers; where the two sides differ, zeros are put on the right first."""
    x, weight, bias, stride, _, dilation, groups = node.inputs()
    mode, kernel, steps = argument(node, 4), sizes(weight), argument(node, 5)
    if mode not in ("same", "valid") or kernel is None or steps is ...:
        return
    axes = len(kernel) - 2
    steps = list(steps) * (axes if len(steps) == 1 else 1)
    total = [d * (k - 1) if mode == "same" else 0 for d, k in zip(steps, kernel[2:])]
    more = [t % 2 for t in total]
    if any(more):
        widths = [w for m in reversed(more) for w in (0, m)]
        shape, kind = sizes(x), dtype(x)
        assert shape is not None
        like = torch.empty(*shape[:2], *(n + m for n, m in zip(shape[2:], more)), dtype=kind)
        x = rewriter.insert("aten::constant_pad_nd", [x, rewriter.integers(widths), rewriter.constant(0)], like)
    padding = rewriter.integers([t // 2 for t in total])
    arguments = [x, weight, bias, stride, padding, dilation, groups]
    rewriter.replace(node, rewriter.insert(f"aten::conv{axes}d", arguments, node.output()))


def _upsample(rewriter: Rewriter, node: Any) -> None:
    """A size as the factors that lead to it: with batches of any size, PyTorch knows no shape to divide it by."""
    shape, made, last = sizes(next(iter(node.inputs()))), sizes(node.output()), len(list(node.inputs())) - 1
    aligned = last == 3 and argument(node, 2) is not False
    if not shape or not made or argument(node, 1) is None or argument(node, last) is not None or aligned:
        return
    scales = rewriter.numbers([n / m for n, m in zip(made[2:], shape[2:], strict=True)])
    node.replaceInput(1, rewriter.constant(None))
    node.replaceInput(last, scales)


def _clamp(rewriter: Rewriter, node: Any) -> None:
    """A clamp between tensors: ``minimum(maximum(x, low), high)``."""
    x, *ends = node.inputs()
    kinds = {"aten::clamp_min": ["aten::maximum"], "aten::clamp_max": ["aten::minimum"]}
    pairs = list(zip(kinds.get(node.kind(), ["aten::maximum", "aten::minimum"]), ends))
    if not any(isinstance(end.type(), torch._C.TensorType) and sizes(end) for end in ends):
        return  # numbers
    for kind, end in pairs:
        if isinstance(end.type(), torch._C.TensorType):
            x = rewriter.insert(kind, [x, end], node.output())
    rewriter.replace(node, x)


def _batch_norm(rewriter: Rewriter, node: Any) -> None:
    """Weight and bias that are absent, as ones and zeros: auto_LiRPA's class wants leaves for them."""
    mean = list(node.inputs())[3]
    for index, kind in ((1, "aten::ones_like"), (2, "aten::zeros_like")):
        value = list(node.inputs())[index]
        if dtype(value) is None and dtype(mean) is not None:
            nothing = [rewriter.constant(None) for _ in range(5)]
            node.replaceInput(index, rewriter.insert(kind, [mean, *nothing], mean))


_FILLED = "ones_like zeros_like full_like new_ones new_zeros new_full ones zeros full".split()
_UPSAMPLES = "nearest1d nearest2d nearest3d linear1d bilinear2d trilinear3d".split()
_RESHAPES = "flatten view reshape squeeze unflatten _unsafe_view".split()

#: By kind.
REWRITES: dict[str, Rewrite] = {
    "aten::size": _size,
    **{f"aten::{name}": _reshape for name in _RESHAPES},
    **{f"aten::{name}": _reduction for name in ("mean", "sum", "amax", "amin")},
    **{f"aten::{name}": _filled for name in _FILLED},
    **{f"aten::{name}": _dropout for name in ("dropout", "feature_dropout", "alpha_dropout")},
    "aten::softmax": masked.softmax,
    "aten::logsumexp": masked.reduction,
    "aten::mm": _product,
    "aten::addmm": _affine_product,
    "aten::avg_pool2d": _average_pool,
    "aten::avg_pool3d": _average_pool,
    "aten::_convolution_mode": _convolution_mode,
    **{f"aten::upsample_{name}": _upsample for name in _UPSAMPLES},
    "aten::clamp": _clamp,
    "aten::clamp_min": _clamp,
    "aten::clamp_max": _clamp,
    "aten::batch_norm": _batch_norm,
    **COMPOSITIONS,
    **ELEMENTARY,
    **DISTANCES,
    **MOVES,
    "aten::einsum": einsum,
    **dict.fromkeys(CELLS, unroll),
}
