"""What each value of a trace depends on: the network's input, the shape of it, or neither."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

#: What they return depends on the shape of their first argument alone.
_SHAPE_ONLY = {
    f"aten::{name}"
    for name in "size numel dim ones_like zeros_like full_like empty_like new_ones new_zeros new_full new_empty".split()
} | {"prim::device", "prim::dtype", "prim::layout"}
#: From a number to the same number.
_CONVERSIONS = {"prim::NumToTensor", "aten::Int", "aten::Float", "aten::ScalarImplicit", "aten::to", "aten::detach"}
_ARITHMETIC = {
    f"aten::{name}" for name in "add sub rsub mul div true_divide pow maximum minimum add_ sub_ mul_ div_".split()
}


@dataclass
class Dependence:
    """Names of the values of one trace, by what they depend on.

    Attributes:
        values: on the network's input itself.
        shapes: on the input's shape, the batch size among it, but not on its values.
        counts: numbers computed from the batch size.
    """

    values: set[str] = field(default_factory=set)
    shapes: set[str] = field(default_factory=set)
    counts: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, graph: Any, inputs: int) -> Dependence:
        """Of a ``torch._C.Graph`` whose first ``inputs`` inputs are the network's, the others its parameters."""
        found = cls()
        found.values.update(v.debugName() for v in list(graph.inputs())[:inputs])
        for node in graph.nodes():
            found.visit(node)
        return found

    def visit(self, node: Any) -> None:
        """Notes what a node's outputs depend on; those of its inputs are known."""
        names = [v.debugName() for v in node.inputs()]
        outputs = [v.debugName() for v in node.outputs()]
        kind = node.kind()
        if kind in ("aten::size", "aten::numel") and names[0] in self.values | self.shapes:
            self.counts.update(outputs)
        if kind in _CONVERSIONS | _ARITHMETIC and any(n in self.counts for n in names):
            if not any(n in self.values for n in names):
                self.counts.update(outputs)
        if any(n in self.values for n in names) and kind not in _SHAPE_ONLY:
            self.values.update(outputs)
        elif any(n in self.values | self.shapes for n in names):
            self.shapes.update(outputs)

    def varies(self, value: Any) -> bool:
        """Whether a value depends on the network's input."""
        return value.debugName() in self.values

    def constant(self, value: Any) -> bool:
        """Whether a value depends neither on the input nor on its shape."""
        return value.debugName() not in self.values | self.shapes

    def reads_count(self, node: Any) -> bool:
        """Whether an operator calculates with the batch size and a value of the network."""
        if node.kind() not in _ARITHMETIC:
            return False
        names = [v.debugName() for v in node.inputs()]
        return any(n in self.counts for n in names) and any(n in self.values for n in names)


def argument(node: Any, index: int) -> Any:
    """The Python value of an operator's argument; ``None`` for an absent one, ``...`` for one that is no constant."""
    values = list(node.inputs())
    return python_value(values[index]) if index < len(values) else None


def python_value(value: Any) -> Any:
    """The number, string, list or ``None`` a value of the trace holds; ``...`` for anything computed."""
    maker = value.node()
    if maker.kind() == "prim::Constant":
        return value.toIValue()
    if maker.kind() == "prim::ListConstruct":
        entries = [python_value(v) for v in maker.inputs()]
        return ... if any(e is ... for e in entries) else entries
    return ...


def sizes(value: Any) -> list[int] | None:
    """The traced shape of a tensor."""
    kind = value.type()
    return list(kind.sizes()) if isinstance(kind, torch._C.TensorType) and kind.sizes() is not None else None


def dtype(value: Any) -> torch.dtype | None:
    """The traced element type of a tensor."""
    kind = value.type()
    return kind.dtype() if isinstance(kind, torch._C.TensorType) else None
