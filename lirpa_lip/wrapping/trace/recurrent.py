"""Recurrent layers, written out step by step as linear layers, sigmoids, tanh and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lirpa_lip.wrapping.trace.dependence import argument, dtype, sizes


class Weights(NamedTuple):
    """Of one layer in one direction: from the input, from the state, their biases, and of a projected state."""

    given: Any
    state: Any
    given_bias: Any
    state_bias: Any
    projection: Any


class Steps:
    """Inserts the operators of one recurrent layer; every value is (batch, features)."""

    def __init__(self, rewriter: Any, like: Any, batch: int) -> None:
        self.rewriter, self.kind, self.batch = rewriter, dtype(like), batch

    def _insert(self, kind: str, arguments: list[Any], width: int) -> Any:
        return self.rewriter.insert(kind, arguments, torch.empty(self.batch, width, dtype=self.kind))

    def add(self, x: Any, y: Any) -> Any:
        return self._insert("aten::add", [x, y, self.rewriter.constant(1)], width(x))

    def subtract(self, x: Any, y: Any) -> Any:
        return self._insert("aten::sub", [x, y, self.rewriter.constant(1)], width(x))

    def multiply(self, x: Any, y: Any) -> Any:
        return self._insert("aten::mul", [x, y], width(x))

    def apply(self, function: str, x: Any) -> Any:
        return self._insert(f"aten::{function}", [x], width(x))

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        rows = (sizes(weight) or [0])[0]
        return self._insert("aten::linear", [x, weight, self.rewriter.constant(None) if bias is None else bias], rows)

    def part(self, x: Any, index: int, count: int) -> Any:
        """One of ``count`` equal parts along the last axis."""
        size = width(x) // count
        axis = len(sizes(x) or []) - 1
        arguments = [x, *(self.rewriter.constant(n) for n in (axis, index * size, (index + 1) * size, 1))]
        like = torch.empty([*(sizes(x) or [])[:-1], size], dtype=self.kind)
        return self.rewriter.insert("aten::slice", arguments, like)

    def select(self, x: Any, axis: int, index: int) -> Any:
        shape = [n for i, n in enumerate(sizes(x) or []) if i != axis]
        arguments = [x, self.rewriter.constant(axis), self.rewriter.constant(index)]
        return self.rewriter.insert("aten::select", arguments, torch.empty(shape, dtype=self.kind))

    def joined(self, values: list[Any], kind: str, axis: int, shape: list[int]) -> Any:
        arguments = [self.rewriter.tensors(values), self.rewriter.constant(axis)]
        return self.rewriter.insert(f"aten::{kind}", arguments, torch.empty(shape, dtype=self.kind))


def width(x: Any) -> int:
    """The size of a value's last axis."""
    return (sizes(x) or [0])[-1]


#: One step: of the gates' input, the states (``None`` for zeros) and the weights, the new states, the output first.
Cell = Callable[[Steps, Any, list[Any], Weights], list[Any]]


def _from_state(steps: Steps, h: Any, weights: Weights) -> Any:
    """``W h + b``; ``None`` where both are zero."""
    return weights.state_bias if h is None else steps.linear(h, weights.state, weights.state_bias)


def _plus(steps: Steps, x: Any, y: Any) -> Any:
    return x if y is None else steps.add(x, y)


def _plain(function: str) -> Cell:
    """``h' = f(W x + b + U h + c)``."""

    def cell(steps: Steps, gates: Any, states: list[Any], weights: Weights) -> list[Any]:
        return [steps.apply(function, _plus(steps, gates, _from_state(steps, states[0], weights)))]

    return cell


def _lstm(steps: Steps, gates: Any, states: list[Any], weights: Weights) -> list[Any]:
    """``c' = σ(f) c + σ(i) tanh(g)``, ``h' = σ(o) tanh(c')``."""
    total = _plus(steps, gates, _from_state(steps, states[0], weights))
    names = ("sigmoid", "sigmoid", "tanh", "sigmoid")
    i, f, g, o = (steps.apply(name, steps.part(total, k, 4)) for k, name in enumerate(names))
    c = steps.multiply(i, g)
    if states[1] is not None:
        c = steps.add(steps.multiply(f, states[1]), c)
    h = steps.multiply(o, steps.apply("tanh", c))
    return [h if weights.projection is None else steps.linear(h, weights.projection, None), c]


def _gru(steps: Steps, gates: Any, states: list[Any], weights: Weights) -> list[Any]:
    """``n = tanh(x_n + σ(r) h_n)``, ``h' = n + σ(z) (h − n)``."""
    (h,), own = states, _from_state(steps, states[0], weights)
    parts = [steps.part(gates, k, 3) for k in range(3)]
    others = [None if own is None else steps.part(own, k, 3) for k in range(3)]
    r, z = (steps.apply("sigmoid", _plus(steps, parts[k], others[k])) for k in range(2))
    n = steps.apply("tanh", _plus(steps, parts[2], None if others[2] is None else steps.multiply(r, others[2])))
    if h is None:
        return [steps.subtract(n, steps.multiply(z, n))]
    return [steps.add(n, steps.multiply(z, steps.subtract(h, n)))]


CELLS: dict[str, Cell] = {
    "aten::lstm": _lstm,
    "aten::gru": _gru,
    "aten::rnn_tanh": _plain("tanh"),
    "aten::rnn_relu": _plain("relu"),
}


def unroll(rewriter: Any, node: Any) -> None:
    """A recurrent layer over samples ``(batch, time, features)``; what `reason_to_refuse` names stays as it is."""
    lists = _states_read(node)
    if reason_to_refuse(node) is not None or lists is None:
        return
    x, start, listed, *_ = node.inputs()
    shape, directions = sizes(x) or [], 2 if argument(node, 7) else 1
    steps, cell = Steps(rewriter, x, shape[0]), CELLS[node.kind()]
    weights = _weights(list(listed.node().inputs()), bool(argument(node, 3)), argument(node, 4) * directions)
    starts = list(start.node().inputs()) if node.kind() == "aten::lstm" else [start]
    last: list[list[Any]] = []
    for layer in range(argument(node, 4)):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            states = [None if _zero(s) else steps.select(s, 0, at) for s in starts]
            found, states = _run(steps, cell, x, states, weights[at], bool(direction))
            outputs.append(found)
            last.append(states)
        both = [
            outputs[0][t] if directions == 1
            else steps.joined([o[t] for o in outputs], "cat", 1, [shape[0], sum(width(o[t]) for o in outputs)])
            for t in range(shape[1])
        ]  # fmt: skip
        x = steps.joined(both, "stack", 1, [shape[0], shape[1], width(both[0])])
    results = list(node.outputs())
    results[0].replaceAllUsesWith(x)
    for which, uses in enumerate(lists):
        for user, index in uses:
            user.output().replaceAllUsesWith(last[index % len(last)][which])


def _run(steps: Steps, cell: Cell, x: Any, states: list[Any], weights: Weights, backwards: bool) -> tuple:
    """Outputs in the order of time, and the last states, of one layer in one direction."""
    shape = sizes(x) or []
    rows = (sizes(weights.given) or [0])[0]
    like = torch.empty(shape[0], shape[1], rows, dtype=steps.kind)
    bias = steps.rewriter.constant(None) if weights.given_bias is None else weights.given_bias
    gates = steps.rewriter.insert("aten::linear", [x, weights.given, bias], like)
    outputs: list[Any] = [None] * shape[1]
    for t in reversed(range(shape[1])) if backwards else range(shape[1]):
        states = cell(steps, steps.select(gates, 1, t), states, weights)
        outputs[t] = states[0]
    return outputs, states


def _weights(values: list[Any], biased: bool, count: int) -> list[Weights]:
    each = len(values) // count
    found = []
    for start in range(0, len(values), each):
        part = values[start : start + each]
        biases = part[2:4] if biased else [None, None]
        projected = part[-1] if each > 2 + 2 * biased else None
        found.append(Weights(part[0], part[1], biases[0], biases[1], projected))
    return found


def _zero(value: Any) -> bool:
    return value.node().kind() in ("aten::zeros", "aten::new_zeros", "aten::zeros_like")


def _states_read(node: Any) -> list[list[tuple[Any, int]]] | None:
    """Of each list of last states, who reads which: ``h[-1]``, or ``h.squeeze(0)`` of a single one; ``None`` else."""
    found = []
    for value in list(node.outputs())[1:]:
        reads = []
        for user in (use.user for use in value.uses()):
            single = user.kind() == "aten::squeeze" and argument(user, 1) == 0 and (sizes(value) or [0])[0] == 1
            index = 0 if single else argument(user, 2)
            if not single and (user.kind() != "aten::select" or argument(user, 1) != 0 or not isinstance(index, int)):
                return None
            reads.append((user, index))
        found.append(reads)
    return found


def reason_to_refuse(node: Any) -> str | None:
    """Why a recurrent layer cannot be written out."""
    shape = sizes(next(iter(node.inputs())))
    if argument(node, 8) is not True:
        return "recurrent layers are read with batch_first=True and a batch axis, from tensors that are not packed"
    if shape is None or len(shape) != 3 or not isinstance(argument(node, 4), int):
        return "a recurrent layer takes (batch, time, features) here"
    if argument(node, 6) is True and argument(node, 5) != 0:
        return "its dropout is on; call .eval() on the model"
    if _states_read(node) is None:
        return "its last states are read as a whole, with the batch on their second axis; read h[-1], or output[:, -1]"
    return None
