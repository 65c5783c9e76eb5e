"""Operators written as compositions of simpler ones: normalisations, gates, attention, shrinkage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lirpa_lip.wrapping.trace.dependence import argument, dtype, sizes
from lirpa_lip.wrapping.trace.evaluate import evaluate
from lirpa_lip.wrapping.trace.masked import masked_softmax, stripped


def binary(rewriter: Any, kind: str, x: Any, y: Any, like: Any) -> Any:
    """``x + y`` and the like; addition and subtraction take a factor."""
    more = [rewriter.constant(1)] if kind in ("add", "sub") else []
    return rewriter.insert(f"aten::{kind}", [x, y, *more], like)


def number(rewriter: Any, value: float, like: Any) -> Any:
    return rewriter.constant(torch.tensor(float(value), dtype=dtype(like)))


def _example(shape: list[int], like: Any) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype(like))


def _reduced(rewriter: Any, kind: str, x: Any, axes: list[int], shape: list[int]) -> Any:
    """A mean or sum of a value of the given shape over axes, which stay with size 1."""
    kept = _example([1 if i in axes else n for i, n in enumerate(shape)], x)
    arguments = [x, rewriter.integers(axes), rewriter.constant(True), rewriter.constant(None)]
    return rewriter.insert(f"aten::{kind}", arguments, kept)


def _over_root(rewriter: Any, x: Any, centred: Any, axes: list[int], shape: list[int], eps: float) -> Any:
    """``x / √(mean(centred²) + ε)``."""
    squares = binary(rewriter, "mul", centred, centred, centred)
    power = _reduced(rewriter, "mean", squares, axes, shape)
    floor = binary(rewriter, "add", power, number(rewriter, eps, x), power)
    return binary(rewriter, "div", x, rewriter.insert("aten::sqrt", [floor], floor), x)


def _scaled(rewriter: Any, x: Any, weight: Any, kind: str, shape: list[int] | None) -> Any:
    """A weight or bias applied to ``x``, if there is one, in a shape that broadcasts."""
    if dtype(weight) is None:
        return x
    if shape is not None:
        weight = rewriter.insert("aten::reshape", [weight, rewriter.integers(shape)], _example(shape, x))
    return binary(rewriter, kind, x, weight, x)


def _group_norm(rewriter: Any, node: Any) -> None:
    x, _, weight, bias = list(node.inputs())[:4]
    groups, eps, shape = argument(node, 1), argument(node, 4), sizes(x)
    if not isinstance(groups, int) or not isinstance(eps, float) or not shape:
        return
    inner = [shape[0], groups, math.prod(shape[1:]) // groups]
    flat = rewriter.insert("aten::reshape", [x, rewriter.integers([-1, *inner[1:]])], _example(inner, x))
    mean = _reduced(rewriter, "mean", flat, [2], inner)
    centred = binary(rewriter, "sub", flat, mean, flat)
    found = _over_root(rewriter, centred, centred, [2], inner, eps)
    found = rewriter.insert("aten::reshape", [found, rewriter.integers([-1, *shape[1:]])], node.output())
    channels = [1, shape[1], *[1] * (len(shape) - 2)]
    for value, kind in ((weight, "mul"), (bias, "add")):
        found = _scaled(rewriter, found, value, kind, channels)
    rewriter.replace(node, found)


def _rms_norm(rewriter: Any, node: Any) -> None:
    x, _, weight = list(node.inputs())[:3]
    last, eps, shape = argument(node, 1), argument(node, 3), sizes(x)
    kind = dtype(x)
    if not isinstance(last, list) or not shape or kind is None or eps is ...:
        return
    axes = list(range(len(shape) - len(last), len(shape)))
    found = _over_root(rewriter, x, x, axes, shape, torch.finfo(kind).eps if eps is None else eps)
    rewriter.replace(node, _scaled(rewriter, found, weight, "mul", None))


def _glu(rewriter: Any, node: Any) -> None:
    """The first half times the sigmoid of the second."""
    x, axis = next(iter(node.inputs())), argument(node, 1)
    shape = sizes(x)
    if not isinstance(axis, int) or not shape:
        return
    axis, half = axis % len(shape), shape[axis % len(shape)] // 2
    halves = []
    for start in (0, half):
        arguments = [x, *(rewriter.constant(n) for n in (axis, start, start + half, 1))]
        halves.append(rewriter.insert("aten::slice", arguments, node.output()))
    gate = rewriter.insert("aten::sigmoid", [halves[1]], node.output())
    rewriter.replace(node, binary(rewriter, "mul", halves[0], gate, node.output()))


def _attention(rewriter: Any, node: Any) -> None:
    """``softmax(q kᵀ · scale + mask) v``, without dropout; a mask is constant, and True where attention goes."""
    q, k, v, given = list(node.inputs())[:4]
    shapes = [sizes(t) for t in (q, k, v)]
    causal, scale, masks = argument(node, 5), argument(node, 6), dtype(given) is not None
    plain = argument(node, 4) in (0, None) and isinstance(causal, bool) and not (masks and causal)
    if not plain or scale is ... or any(s is None for s in shapes):
        return
    (*lead, rows, width), (*_, columns, _) = shapes[0], shapes[1]  # type: ignore[misc]
    turned = rewriter.insert("aten::transpose", [k, rewriter.constant(-2), rewriter.constant(-1)],
                             _example([*lead, width, columns], q))  # fmt: skip
    score = rewriter.insert("aten::matmul", [q, turned], _example([*lead, rows, columns], q))
    score = binary(rewriter, "mul", score, number(rewriter, width**-0.5 if scale is None else scale, q), score)
    if causal or dtype(given) == torch.bool:
        seen = torch.ones(rows, columns, dtype=torch.bool).tril() if causal else evaluate(given, rewriter.parameters)
        if not isinstance(seen, torch.Tensor):
            return
        fill = [score, rewriter.constant(~seen), rewriter.constant(-math.inf)]
        score = rewriter.insert("aten::masked_fill", fill, score)
    elif masks:
        score = binary(rewriter, "add", score, given, score)
    arguments = [score, rewriter.constant(-1), rewriter.constant(None)]
    masked = stripped(rewriter, score)
    weights = masked and masked_softmax(rewriter, masked, masked.blocked.ndim)
    if weights is None:
        weights = rewriter.insert("aten::softmax", arguments, score)
    rewriter.replace(node, rewriter.insert("aten::matmul", [weights, v], node.output()))


def _soft_shrink(rewriter: Any, node: Any) -> None:
    """``x − clip(x, −λ, λ)``."""
    x, threshold = next(iter(node.inputs())), argument(node, 1)
    if isinstance(threshold, (int, float)):
        ends = [rewriter.constant(float(t)) for t in (-threshold, threshold)]
        clipped = rewriter.insert("aten::hardtanh", [x, *ends], node.output())
        rewriter.replace(node, binary(rewriter, "sub", x, clipped, node.output()))


def _hypot(rewriter: Any, node: Any) -> None:
    """``√(x² + y²)``."""
    x, y = node.inputs()
    squares = [binary(rewriter, "mul", t, t, t) for t in (x, y)]
    total = binary(rewriter, "add", squares[0], squares[1], node.output())
    rewriter.replace(node, rewriter.insert("aten::sqrt", [total], node.output()))


def _tile(rewriter: Any, node: Any) -> None:
    counts, shape = argument(node, 1), sizes(next(iter(node.inputs())))
    if isinstance(counts, list) and shape and len(counts) <= len(shape):
        counts = [1] * (len(shape) - len(counts)) + counts
        x = next(iter(node.inputs()))
        rewriter.replace(node, rewriter.insert("aten::repeat", [x, rewriter.integers(counts)], node.output()))


def _celu(rewriter: Any, node: Any) -> None:
    """``α elu(x/α)``."""
    x, alpha = next(iter(node.inputs())), argument(node, 1)
    kind = dtype(node.output())
    if not isinstance(alpha, (int, float)) or alpha <= 0 or kind is None:
        return
    number = rewriter.constant(torch.tensor(float(alpha), dtype=kind))
    inner = rewriter.insert("aten::div", [x, number], node.output())
    ones = [rewriter.constant(1.0) for _ in range(3)]
    bent = rewriter.insert("aten::elu", [inner, *ones], node.output())
    rewriter.replace(node, rewriter.insert("aten::mul", [bent, number], node.output()))


def _variance(rewriter: Any, node: Any) -> None:
    """``Σ (x − mean)² / (n − correction)`` over axes, and its root."""
    x, axes, correction, keep = next(iter(node.inputs())), argument(node, 1), argument(node, 2), argument(node, 3)
    shape, kind, made = sizes(x), dtype(node.output()), sizes(node.output())
    if not isinstance(axes, list) or not shape or not made or kind is None or not isinstance(keep, bool):
        return
    if isinstance(correction, bool):  # the older form says whether to correct at all
        correction = int(correction)
    axes = [a % len(shape) for a in axes]
    count = math.prod(shape[a] for a in axes) - (1 if correction is None else correction)
    if 0 in axes or count <= 0 or not isinstance(count, (int, float)):
        return
    kept = torch.empty([1 if i in axes else n for i, n in enumerate(shape)], dtype=kind)
    none, one = rewriter.constant(None), rewriter.constant(1)
    mean = rewriter.insert("aten::mean", [x, rewriter.integers(axes), rewriter.constant(True), none], kept)
    away = rewriter.insert("aten::sub", [x, mean, one], x)
    squares = rewriter.insert("aten::mul", [away, away], x)
    total = rewriter.insert(
        "aten::sum", [squares, rewriter.integers(axes), rewriter.constant(keep), none], node.output()
    )
    number = rewriter.constant(torch.tensor(float(count), dtype=kind))
    result = rewriter.insert("aten::div", [total, number], node.output())
    if node.kind() == "aten::std":
        result = rewriter.insert("aten::sqrt", [result], node.output())
    rewriter.replace(node, result)


COMPOSITIONS: dict[str, Callable[[Any, Any], None]] = {
    "aten::group_norm": _group_norm,
    "aten::rms_norm": _rms_norm,
    "aten::glu": _glu,
    "aten::scaled_dot_product_attention": _attention,
    "aten::softshrink": _soft_shrink,
    "aten::celu": _celu,
    "aten::hypot": _hypot,
    "aten::tile": _tile,
    "aten::var": _variance,
    "aten::std": _variance,
}
