"""Distances and angles between two values, and what else is short in other words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lirpa_lip.wrapping.trace.compositions import binary, number
from lirpa_lip.wrapping.trace.dependence import argument, dtype, sizes


def _shape(value: Any) -> list[int]:
    return sizes(value) or []


def _length(rewriter: Any, x: Any, axis: int, shape: list[int], keep: bool) -> Any:
    """The Euclidean norm along an axis."""
    kept = [1 if i == axis else n for i, n in enumerate(shape) if keep or i != axis]
    like = torch.empty(kept, dtype=dtype(x))
    arguments = [x, rewriter.constant(2), rewriter.integers([axis]), rewriter.constant(keep), rewriter.constant(None)]
    return rewriter.insert("aten::linalg_vector_norm", arguments, like)


def _cosine(rewriter: Any, node: Any) -> None:
    """``Σ x y / (max(‖x‖, ε) max(‖y‖, ε))`` along an axis."""
    axis, eps = argument(node, 2), argument(node, 3)
    shapes = [_shape(v) for v in list(node.inputs())[:2]]
    if not isinstance(axis, int) or not isinstance(eps, float) or not all(shapes):
        return
    whole = list(torch.broadcast_shapes(*shapes))
    axis, unit = axis % len(whole), []
    if axis == 0:
        return
    for x, shape in zip(node.inputs(), shapes):
        if len(shape) != len(whole) or shape[axis] != whole[axis]:
            return
        length = _length(rewriter, x, axis, shape, True)
        floor = rewriter.insert("aten::clamp_min", [length, rewriter.constant(eps)], length)
        unit.append(binary(rewriter, "div", x, floor, x))
    product = binary(rewriter, "mul", unit[0], unit[1], torch.empty(whole, dtype=dtype(node.output())))
    arguments = [product, rewriter.integers([axis]), rewriter.constant(False), rewriter.constant(None)]
    rewriter.replace(node, rewriter.insert("aten::sum", arguments, node.output()))


def _distance(rewriter: Any, node: Any) -> None:
    """``‖x − y + ε‖`` along the last axis."""
    x, y = list(node.inputs())[:2]
    order, eps, keep = argument(node, 2), argument(node, 3), argument(node, 4)
    if order != 2 or not isinstance(eps, float) or not isinstance(keep, bool) or not _shape(x) or not _shape(y):
        return
    whole = list(torch.broadcast_shapes(_shape(x), _shape(y)))
    if len(whole) < 2:
        return
    apart = binary(rewriter, "sub", x, y, torch.empty(whole, dtype=dtype(node.output())))
    moved = binary(rewriter, "add", apart, number(rewriter, eps, apart), apart)
    rewriter.replace(node, _length(rewriter, moved, len(whole) - 1, whole, keep))


def _angle(rewriter: Any, node: Any) -> None:
    """``atan2(y, x) = 2 atan(y / (√(x² + y²) + x))``, which has a pole where the angle jumps."""
    y, x = node.inputs()
    squares = [binary(rewriter, "mul", t, t, t) for t in (x, y)]
    total = binary(rewriter, "add", squares[0], squares[1], node.output())
    below = binary(rewriter, "add", rewriter.insert("aten::sqrt", [total], total), x, total)
    half = rewriter.insert("aten::atan", [binary(rewriter, "div", y, below, total)], total)
    rewriter.replace(node, binary(rewriter, "add", half, half, total))


def _times_log(rewriter: Any, node: Any) -> None:
    """``x log y``, for y > 0."""
    x, y = node.inputs()
    logarithm = rewriter.insert("aten::log", [y], y)
    rewriter.replace(node, binary(rewriter, "mul", x, logarithm, node.output()))


def _as(kind: str, *more: Any) -> Callable[[Any, Any], None]:
    """The same under another name."""

    def rewrite(rewriter: Any, node: Any) -> None:
        arguments = [*node.inputs(), *(rewriter.constant(m) for m in more)]
        rewriter.replace(node, rewriter.insert(kind, arguments, node.output()))

    return rewrite


def _itself(rewriter: Any, node: Any) -> None:
    rewriter.replace(node, next(iter(node.inputs())))


def _side_by_side(rewriter: Any, node: Any) -> None:
    """``hstack`` of values with more than the batch axis."""
    if len(_shape(node.output())) > 1:
        arguments = [next(iter(node.inputs())), rewriter.constant(1)]
        rewriter.replace(node, rewriter.insert("aten::cat", arguments, node.output()))


def _difference(rewriter: Any, node: Any) -> None:
    """Differences of neighbours, some times over."""
    x, order, axis = next(iter(node.inputs())), argument(node, 1), argument(node, 2)
    shape = list(_shape(x))
    if not isinstance(order, int) or not isinstance(axis, int) or not shape or argument(node, 3) or argument(node, 4):
        return
    axis %= len(shape)
    if order < 1 or order >= shape[axis]:
        return
    for _ in range(order):
        count, parts = shape[axis], []
        shape[axis] = count - 1
        like = torch.empty(shape, dtype=dtype(node.output()))
        for start in (1, 0):
            arguments = [x, *(rewriter.constant(n) for n in (axis, start, start + count - 1, 1))]
            parts.append(rewriter.insert("aten::slice", arguments, like))
        x = binary(rewriter, "sub", parts[0], parts[1], like)
    rewriter.replace(node, x)


def _interpolated(rewriter: Any, node: Any) -> None:
    """``x + w (y − x)`` for a number w, or one for each entry."""
    x, y, w = node.inputs()
    away = binary(rewriter, "sub", y, x, node.output())
    weight = argument(node, 2)
    by = number(rewriter, weight, away) if isinstance(weight, (int, float)) else w
    step = binary(rewriter, "mul", away, by, node.output())
    rewriter.replace(node, binary(rewriter, "add", x, step, node.output()))


DISTANCES: dict[str, Callable[[Any, Any], None]] = {
    "aten::cosine_similarity": _cosine,
    "aten::pairwise_distance": _distance,
    "aten::atan2": _angle,
    "aten::xlogy": _times_log,
    "aten::fmax": _as("aten::maximum"),
    "aten::fmin": _as("aten::minimum"),
    "aten::positive": _itself,
    "aten::nan_to_num": _itself,
    "aten::hstack": _side_by_side,
    "aten::diff": _difference,
    "aten::lerp": _interpolated,
}
