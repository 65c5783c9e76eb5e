"""``einsum`` as sums over axes, permutations and matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lirpa_lip.wrapping.trace.dependence import argument, dtype, sizes


class Labelled(NamedTuple):
    """A value, the name of each of its axes, and whether the first of them is the batch's."""

    value: Any
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    varies: bool

    def of(self, labels: Sequence[str]) -> list[int]:
        return [self.shape[self.labels.index(label)] for label in labels]


def einsum(rewriter: Any, node: Any) -> None:
    """Operands are taken together two by two; what is no einsum of samples along the first axis stays as it is."""
    equation, parts = argument(node, 0), list(node.inputs())[1].node()
    operands = list(parts.inputs()) if parts.kind() == "prim::ListConstruct" else []
    shapes = [sizes(v) for v in operands]
    if not isinstance(equation, str) or not operands or any(s is None for s in shapes):
        return
    read = _labels(equation, [len(s) for s in shapes if s is not None])
    if read is None:
        return
    named, wanted = read
    pending = [Labelled(v, n, tuple(s or ()), rewriter.depends.varies(v)) for v, n, s in zip(operands, named, shapes)]
    varying = [p for p in pending if p.varies]
    batch = wanted[0] if wanted else None
    if batch is None or any(p.labels[0] != batch for p in varying) or not varying:
        return
    if any(batch in p.labels for p in pending if p not in varying):
        return
    pending = varying + [p for p in pending if p not in varying]
    found = _summed(rewriter, pending[0], {*wanted, *(x for p in pending[1:] for x in p.labels)})
    for i, other in enumerate(pending[1:], start=2):
        kept = {*wanted, *(x for p in pending[i:] for x in p.labels)}
        found = _product(rewriter, found, other, kept)
    rewriter.replace(node, _arranged(rewriter, found, wanted).value)


def _labels(equation: str, ranks: list[int]) -> tuple[list[tuple[str, ...]], tuple[str, ...]] | None:
    """Names of the axes of each operand, and of the result; ``None`` for a repeated name or operands left out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    # an ellipsis stands for axes that are named from the last one backwards
    hidden = max((rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks) if "..." in t), default=0)
    names = [f"...{i}" for i in reversed(range(hidden))]

    def split(term: str, count: int) -> tuple[str, ...]:
        before, dots, after = term.partition("...")
        return (*before, *(names[len(names) - count :] if dots and count else ()), *after)

    found = [split(t, rank - len(t.replace("...", ""))) for t, rank in zip(terms, ranks)]
    if any(len(set(f)) != len(f) or len(f) != rank for f, rank in zip(found, ranks)):
        return None
    if arrow:
        return found, split(right, hidden)
    every = [label for f in found for label in f]
    return found, (*names, *sorted(label for label in set(every) - set(names) if every.count(label) == 1))


def _summed(rewriter: Any, x: Labelled, kept: set[str]) -> Labelled:
    """Summed over all axes but those in ``kept``."""
    axes = [i for i, label in enumerate(x.labels) if label not in kept]
    if not axes:
        return x
    labels = tuple(label for label in x.labels if label in kept)
    like = torch.empty(x.of(labels), dtype=dtype(x.value))
    arguments = [x.value, rewriter.integers(axes), rewriter.constant(False), rewriter.constant(None)]
    return Labelled(rewriter.insert("aten::sum", arguments, like), labels, tuple(like.shape), x.varies)


def _arranged(rewriter: Any, x: Labelled, labels: Sequence[str]) -> Labelled:
    """With its axes in another order."""
    if x.labels == tuple(labels):
        return x
    like = torch.empty(x.of(labels), dtype=dtype(x.value))
    order = rewriter.integers([x.labels.index(label) for label in labels])
    return Labelled(
        rewriter.insert("aten::permute", [x.value, order], like), tuple(labels), tuple(like.shape), x.varies
    )


def _matrices(rewriter: Any, x: Labelled, groups: Sequence[Sequence[str]], lead: Sequence[str]) -> Any:
    """The axes of ``lead``, then one axis for each group."""
    x = _arranged(rewriter, x, [*lead, *(label for group in groups for label in group)])
    shape = [*x.of(lead), *(math.prod(x.of(group)) for group in groups)]
    return _reshaped(rewriter, x, shape)


def _reshaped(rewriter: Any, x: Labelled, shape: list[int]) -> Any:
    if list(x.shape) == shape:
        return x.value
    first = -1 if x.varies else shape[0]
    like = torch.empty(shape, dtype=dtype(x.value))
    return rewriter.insert("aten::reshape", [x.value, rewriter.integers([first, *shape[1:]])], like)


def _product(rewriter: Any, x: Labelled, y: Labelled, kept: set[str]) -> Labelled:
    """The product of a value that varies and one that may, summed over what is not in ``kept``, as a matrix product."""
    x, y = _summed(rewriter, x, kept | set(y.labels)), _summed(rewriter, y, kept | set(x.labels))
    rows = [a for a in x.labels if a not in y.labels]
    columns = [a for a in y.labels if a not in x.labels]
    inner = [a for a in x.labels if a in y.labels and a not in kept]
    shared = [a for a in x.labels if a in y.labels and a in kept]
    if not y.varies:  # the batch axis is one of x alone
        rows = [a for a in rows if a != x.labels[0]]
        shared = [x.labels[0], *shared]
    left = _matrices(rewriter, x, (rows, inner), shared)
    right = _matrices(rewriter, y, (inner, columns), shared if y.varies else shared[1:])
    made = [*x.of(shared), math.prod(x.of(rows)), math.prod(y.of(columns))]
    like = torch.empty(made, dtype=dtype(x.value))
    product = rewriter.insert("aten::matmul", [left, right], like)
    labels = (*shared, *rows, *columns)
    shape = [*x.of(shared), *x.of(rows), *y.of(columns)]
    if made != shape:
        like = torch.empty(shape, dtype=dtype(x.value))
        product = rewriter.insert("aten::reshape", [product, rewriter.integers([-1, *shape[1:]])], like)
    return Labelled(product, labels, tuple(shape), True)
