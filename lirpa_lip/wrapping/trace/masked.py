"""Softmax, log-sum-exp and maximum of values of which a constant mask takes some to minus infinity.

What is at minus infinity plays no part: each row is the same function of the entries that count. Rows whose entries are
the same ones go together, through one operator of that width, and no infinity is left. A causal mask over n tokens
makes n such groups, a mask of padding one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lirpa_lip.wrapping.trace.dependence import argument, dtype, sizes
from lirpa_lip.wrapping.trace.evaluate import evaluate

_FILLS = ("aten::masked_fill", "aten::masked_fill_")
_INFINITY = -math.inf


class Masked(NamedTuple):
    """A value of a trace without what is at minus infinity, and which entries of a sample that is."""

    value: Any
    blocked: Tensor


def stripped(rewriter: Any, value: Any) -> Masked | None:
    """The value and its mask; None where it has none that is constant, or one that differs between samples."""
    node, shape = value.node(), sizes(value)
    if not shape or shape[0] != rewriter.batch or not rewriter.depends.varies(value):
        return None
    reader = _READERS.get(node.kind())
    found = reader(rewriter, node, shape) if reader is not None else None
    if found is None:
        return None
    inner, blocked = found
    blocked = blocked.expand(shape)
    if sizes(inner) != shape or bool((blocked != blocked[:1]).any()):
        return None
    return Masked(inner, blocked[0])


def _or_more(rewriter: Any, inner: Any, blocked: Tensor) -> tuple[Any, Tensor]:
    """A mask, and those that lie under it."""
    before = stripped(rewriter, inner)
    if before is None:
        return inner, blocked
    return before.value, blocked | before.blocked.unsqueeze(0)


def _filled(rewriter: Any, node: Any, shape: list[int]) -> tuple[Any, Tensor] | None:
    x, mask, fill = node.inputs()
    chosen, number = (evaluate(v, rewriter.parameters) for v in (mask, fill))
    if not isinstance(chosen, Tensor) or number is ... or float(number) != _INFINITY:
        return None
    return _or_more(rewriter, x, chosen.bool())


def _where(rewriter: Any, node: Any, shape: list[int]) -> tuple[Any, Tensor] | None:
    chosen, *branches = (evaluate(v, rewriter.parameters) for v in node.inputs())
    if not isinstance(chosen, Tensor):
        return None
    for index, blocked in ((0, chosen.bool()), (1, ~chosen.bool())):
        value = branches[index]
        if value is not ... and bool((torch.as_tensor(value) == _INFINITY).all()):
            return _or_more(rewriter, list(node.inputs())[2 - index], blocked)
    return None


def _added(rewriter: Any, node: Any, shape: list[int]) -> tuple[Any, Tensor] | None:
    x, y = list(node.inputs())[:2]
    if argument(node, 2) not in (1, None):
        return None
    if not rewriter.depends.varies(x):
        x, y = y, x
    mask = ... if rewriter.depends.varies(y) else evaluate(y, rewriter.parameters)
    if not isinstance(mask, Tensor) or not bool((mask == _INFINITY).any()):
        return None
    blocked, kind = mask == _INFINITY, dtype(x)
    inner, blocked = _or_more(rewriter, x, blocked)
    rest = torch.where(mask == _INFINITY, 0.0, mask.detach()).to(kind)
    if sizes(inner) != shape or bool((rest != 0).any()):
        like = torch.empty(shape, dtype=kind)
        arguments = [inner, rewriter.constant(rest), rewriter.constant(1)]
        inner = rewriter.insert("aten::add", arguments, like)
    return inner, blocked


def _scaled(rewriter: Any, node: Any, shape: list[int]) -> tuple[Any, Tensor] | None:
    """Minus infinity times a positive number, or over one, is itself."""
    x, factor = node.inputs()
    by = ... if rewriter.depends.varies(factor) else evaluate(factor, rewriter.parameters)
    if by is ... or not bool((torch.as_tensor(by) > 0).all()) or not bool(torch.isfinite(torch.as_tensor(by)).all()):
        return None
    before = stripped(rewriter, x)
    if before is None:
        return None
    return rewriter.insert(node.kind(), [before.value, factor], node.output()), before.blocked.unsqueeze(0)


_READERS: dict[str, Callable[[Any, Any, list[int]], tuple[Any, Tensor] | None]] = {
    **dict.fromkeys(_FILLS, _filled),
    "aten::where": _where,
    "aten::add": _added,
    "aten::mul": _scaled,
    "aten::div": _scaled,
}


class _Rows:
    """The entries of a sample as rows along some axes (counted with the batch), by number."""

    def __init__(self, blocked: Tensor, axes: list[int]) -> None:
        self.shape, self.axes = blocked.shape, axes
        others = [a for a in range(blocked.ndim) if a + 1 not in axes]
        order = [*others, *(a - 1 for a in axes)]
        numbers = torch.arange(blocked.numel()).reshape(blocked.shape)
        width = math.prod(blocked.shape[a - 1] for a in axes)
        self.numbers, self.allowed = (t.permute(order).reshape(-1, width) for t in (numbers, ~blocked))

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Of rows with the same entries: which rows, and the numbers of the entries that count, ``(rows, width)``."""
        patterns, own = self.allowed.unique(dim=0, return_inverse=True)
        rows = [(own == i).nonzero().flatten() for i in range(len(patterns))]
        return [(r, self.numbers[r][:, p]) for r, p in zip(rows, patterns)]


def _pieces(rewriter: Any, masked: Masked, rows: _Rows, operator: Callable[[Any, Any, int], Any]) -> tuple[Any, list]:
    """The operator on each group, side by side ``(batch, entries)``, and the groups in that order."""
    kind, batch = dtype(masked.value), rewriter.batch
    count, parts, groups = masked.blocked.numel(), [], rows.groups()
    flat = _reshaped(rewriter, masked.value, [count], kind)
    for _, numbers in groups:
        taken = torch.empty(batch, numbers.numel(), dtype=kind)
        arguments = [flat, rewriter.constant(1), rewriter.constant(numbers.flatten())]
        chosen = rewriter.insert("aten::index_select", arguments, taken)
        chosen = _reshaped(rewriter, chosen, list(numbers.shape), kind)
        made = operator(chosen, torch.empty(batch, *numbers.shape, dtype=kind), 2)
        parts.append(_reshaped(rewriter, made, [math.prod(_inner(made))], kind))
    if len(parts) == 1:
        return parts[0], groups
    width = sum(math.prod(_inner(p)) for p in parts)
    like = torch.empty(batch, width, dtype=kind)
    return rewriter.insert("aten::cat", [rewriter.tensors(parts), rewriter.constant(1)], like), groups


def _inner(value: Any) -> list[int]:
    """Shape of a sample."""
    return (sizes(value) or [])[1:]


def _reshaped(rewriter: Any, value: Any, shape: list[int], kind: torch.dtype | None) -> Any:
    like = torch.empty([rewriter.batch, *shape], dtype=kind)
    return rewriter.insert("aten::reshape", [value, rewriter.integers([-1, *shape])], like)


def _placed(rewriter: Any, pieces: Any, source: Tensor, shape: list[int]) -> Any:
    """Entries of the pieces by number, 0 where there is none, in the shape of the whole."""
    kind = dtype(pieces)
    like = torch.empty(rewriter.batch, source.numel(), dtype=kind)
    arguments = [pieces, rewriter.constant(1), rewriter.constant(source.clamp(min=0))]
    found = rewriter.insert("aten::index_select", arguments, like)
    if bool((source < 0).any()):
        present = rewriter.constant((source >= 0).to(kind).unsqueeze(0))
        found = rewriter.insert("aten::mul", [found, present], like)
    return _reshaped(rewriter, found, shape, kind)


def masked_softmax(rewriter: Any, masked: Masked, axis: int) -> Any | None:
    """Softmax along an axis, 0 at what is blocked; None where a row has nothing left."""
    rows = _Rows(masked.blocked, [axis])
    if not bool(rows.allowed.any(1).all()):
        return None

    def operator(value: Any, like: Tensor, last: int) -> Any:
        return rewriter.insert("aten::softmax", [value, rewriter.constant(last), rewriter.constant(None)], like)

    pieces, groups = _pieces(rewriter, masked, rows, operator)
    source = torch.full((masked.blocked.numel(),), -1)
    placed = torch.cat([numbers.flatten() for _, numbers in groups])
    source[placed] = torch.arange(len(placed))
    return _placed(rewriter, pieces, source, list(masked.blocked.shape))


def masked_reduction(rewriter: Any, masked: Masked, kind: str, axes: list[int], keep: bool) -> Any | None:
    """``amax`` or ``logsumexp`` over axes; None where a row has nothing left."""
    rows = _Rows(masked.blocked, axes)
    if not bool(rows.allowed.any(1).all()):
        return None

    def operator(value: Any, like: Tensor, last: int) -> Any:
        arguments = [value, rewriter.integers([last]), rewriter.constant(False)]
        return rewriter.insert(kind, arguments, like[..., 0])

    pieces, groups = _pieces(rewriter, masked, rows, operator)
    order = torch.cat([r for r, _ in groups])
    source = torch.empty_like(order)
    source[order] = torch.arange(len(order))
    whole = masked.blocked.shape
    shape = [1 if i + 1 in axes else n for i, n in enumerate(whole) if keep or i + 1 not in axes]
    return _placed(rewriter, pieces, source, shape)


def softmax(rewriter: Any, node: Any) -> None:
    """A softmax of masked values."""
    x, axis = next(iter(node.inputs())), argument(node, 1)
    masked = stripped(rewriter, x)
    if masked is None or not isinstance(axis, int) or axis % (masked.blocked.ndim + 1) == 0:
        return
    found = masked_softmax(rewriter, masked, axis % (masked.blocked.ndim + 1))
    if found is not None:
        rewriter.replace(node, found)


def reduction(rewriter: Any, node: Any) -> None:
    """A maximum or a log-sum-exp of masked values."""
    x, axes, keep = next(iter(node.inputs())), argument(node, 1), argument(node, 2)
    masked = stripped(rewriter, x)
    if masked is None or not isinstance(axes, list) or not axes or not isinstance(keep, bool):
        return
    axes = [a % (masked.blocked.ndim + 1) for a in axes]
    found = None if 0 in axes else masked_reduction(rewriter, masked, node.kind(), axes, keep)
    if found is not None:
        rewriter.replace(node, found)
