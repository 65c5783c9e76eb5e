"""Elementary functions and norms without an ONNX form, written with those that have one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lirpa_lip.wrapping.trace.compositions import binary, number
from lirpa_lip.wrapping.trace.dependence import argument, dtype, sizes

#: Most factors of a product over an axis, each of which is a node.
_MOST_FACTORS = 64


def _unary(rewriter: Any, function: str, x: Any) -> Any:
    return rewriter.insert(f"aten::{function}", [x], x)


def _exp_minus_one(rewriter: Any, node: Any) -> None:
    (x,) = node.inputs()
    rewriter.replace(node, binary(rewriter, "sub", _unary(rewriter, "exp", x), number(rewriter, 1, x), x))


def _times(rewriter: Any, x: Any, factor: float, like: Any) -> Any:
    """``factor · x``, in float32 as the sum of two products: float32's nearest number, and what that leaves."""
    scaled = binary(rewriter, "mul", x, number(rewriter, factor, like), like)
    left = factor - float(torch.tensor(factor, dtype=dtype(like)))
    if left == 0:
        return scaled
    return binary(rewriter, "add", scaled, binary(rewriter, "mul", x, number(rewriter, left, like), like), like)


def _power_of(rewriter: Any, node: Any) -> None:
    """``c ** x`` as ``exp(x log c)`` for a number c > 0."""
    base, x = 2.0 if node.kind() == "aten::exp2" else argument(node, 0), list(node.inputs())[-1]
    if isinstance(base, torch.Tensor) and base.numel() == 1:
        base = base.item()
    if rewriter.depends.varies(x) and base is ...:
        _power_of_values(rewriter, node)
    elif isinstance(base, (int, float)) and base > 0 and rewriter.depends.varies(x):
        scaled = _times(rewriter, x, math.log(base), node.output())
        rewriter.replace(node, _unary(rewriter, "exp", scaled))


def _power_of_values(rewriter: Any, node: Any) -> None:
    """``x ** y`` of two values that vary, as ``exp(y log x)``, for x > 0."""
    x, y = node.inputs()
    if rewriter.depends.varies(x):
        exponent = binary(rewriter, "mul", y, _unary(rewriter, "log", x), node.output())
        rewriter.replace(node, rewriter.insert("aten::exp", [exponent], node.output()))


def _hyperbolic(kind: str, sign: str) -> Callable[[Any, Any], None]:
    """``(eˣ ± e⁻ˣ) / 2``."""

    def rewrite(rewriter: Any, node: Any) -> None:
        (x,) = node.inputs()
        up, down = _unary(rewriter, "exp", x), _unary(rewriter, "exp", _unary(rewriter, "neg", x))
        total = binary(rewriter, sign, up, down, x)
        rewriter.replace(node, binary(rewriter, "mul", total, number(rewriter, 0.5, x), x))

    rewrite.__doc__ = f"``{kind}``: ``(eˣ ± e⁻ˣ) / 2``."
    return rewrite


def _error_complement(rewriter: Any, node: Any) -> None:
    """``1 − erf x``."""
    (x,) = node.inputs()
    negative = _unary(rewriter, "neg", _unary(rewriter, "erf", x))
    rewriter.replace(node, binary(rewriter, "add", negative, number(rewriter, 1, x), x))


def _normal_distribution(rewriter: Any, node: Any) -> None:
    """``(1 + erf(x/√2)) / 2``."""
    (x,) = node.inputs()
    error = _unary(rewriter, "erf", _times(rewriter, x, math.sqrt(0.5), x))
    half = number(rewriter, 0.5, x)
    rewriter.replace(node, binary(rewriter, "add", binary(rewriter, "mul", error, half, x), half, x))


def _quotient_added(rewriter: Any, node: Any) -> None:
    """``x + v y/z``."""
    x, y, z, _ = node.inputs()
    value = argument(node, 3)
    if isinstance(value, (int, float)):
        part = binary(rewriter, "div", y, z, node.output())
        scaled = part if value == 1 else binary(rewriter, "mul", part, number(rewriter, value, part), part)
        rewriter.replace(node, binary(rewriter, "add", x, scaled, node.output()))


def _logarithm_of_sum(rewriter: Any, node: Any) -> None:
    """``log(eˣ + eʸ)`` of two values of one shape, as a log-sum-exp over a new axis."""
    values, shape = list(node.inputs()), sizes(node.output())
    if not shape or any(sizes(v) != shape for v in values):
        return
    like = torch.empty([shape[0], 2, *shape[1:]], dtype=dtype(node.output()))
    stacked = rewriter.insert("aten::stack", [rewriter.tensors(values), rewriter.constant(1)], like)
    arguments = [stacked, rewriter.integers([1]), rewriter.constant(False)]
    rewriter.replace(node, rewriter.insert("aten::logsumexp", arguments, node.output()))


def _threshold(rewriter: Any, node: Any) -> None:
    """``x`` above a threshold and the threshold below, a clamp; another value below is a jump."""
    x, low, value = next(iter(node.inputs())), argument(node, 1), argument(node, 2)
    if isinstance(low, (int, float)) and low == value:
        rewriter.replace(node, rewriter.insert("aten::clamp_min", [x, rewriter.constant(low)], node.output()))


def _absolute_sum(rewriter: Any, node: Any) -> None:
    """The 1-norm, over axes."""
    x, order, axes, keep = next(iter(node.inputs())), argument(node, 1), argument(node, 2), argument(node, 3)
    shape = sizes(x)
    if isinstance(order, torch.Tensor):
        order = order.item()
    if order != 1 or not isinstance(axes, list) or not shape or not isinstance(keep, bool):
        return
    arguments = [_unary(rewriter, "abs", x), rewriter.integers([a % len(shape) for a in axes]),
                 rewriter.constant(keep), rewriter.constant(None)]  # fmt: skip
    rewriter.replace(node, rewriter.insert("aten::sum", arguments, node.output()))


def _product_over_axis(rewriter: Any, node: Any) -> None:
    """One factor after the other."""
    x, axis, keep = next(iter(node.inputs())), argument(node, 1), argument(node, 2)
    shape = sizes(x)
    if not isinstance(axis, int) or not shape or not isinstance(keep, bool):
        return
    axis %= len(shape)
    if axis == 0 or shape[axis] > _MOST_FACTORS:
        return
    found = None
    for start in range(shape[axis]):
        if keep:
            arguments = [x, *(rewriter.constant(n) for n in (axis, start, start + 1, 1))]
            part = rewriter.insert("aten::slice", arguments, node.output())
        else:
            part = rewriter.insert(
                "aten::select", [x, rewriter.constant(axis), rewriter.constant(start)], node.output()
            )
        found = part if found is None else binary(rewriter, "mul", found, part, node.output())
    rewriter.replace(node, found)


def _of_no_sign(rewriter: Any, node: Any) -> None:
    """``sign(x) relu(|x|)``, by which PyTorch's pooling by p-norms ends, as x."""
    makers = {v.node().kind(): v.node() for v in node.inputs()}
    if set(makers) == {"aten::sign", "aten::relu"}:
        inner = next(iter(makers["aten::relu"].inputs()))
        x = next(iter(makers["aten::sign"].inputs()))
        if inner.node().kind() == "aten::abs" and next(iter(inner.node().inputs())).debugName() == x.debugName():
            rewriter.replace(node, x)


ELEMENTARY: dict[str, Callable[[Any, Any], None]] = {
    "aten::expm1": _exp_minus_one,
    "aten::exp2": _power_of,
    "aten::pow": _power_of,
    "aten::sinh": _hyperbolic("sinh", "sub"),
    "aten::cosh": _hyperbolic("cosh", "add"),
    "aten::erfc": _error_complement,
    "aten::special_ndtr": _normal_distribution,
    "aten::addcdiv": _quotient_added,
    "aten::logaddexp": _logarithm_of_sum,
    "aten::threshold": _threshold,
    "aten::norm": _absolute_sum,
    "aten::linalg_vector_norm": _absolute_sum,
    "aten::prod": _product_over_axis,
    "aten::mul": _of_no_sign,
}
