"""auto_LiRPA's view of an operator it has no class for, or none that is right: all of it from the adapter.

The adapter's nodes, affine maps and elementwise activations, are walked forwards for values and intervals and
backwards for CROWN, with the lines of `lirpa_lip.activations.lines` for activations inside (pooling by tournaments).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from auto_LiRPA.bound_ops import Bound
from auto_LiRPA.linear_bound import LinearBound
from torch import Tensor

from lirpa_lip.activations.lines import relaxations
from lirpa_lip.activations.planes import Plane, Relaxation
from lirpa_lip.errors import DomainError
from lirpa_lip.network.emit import GraphBuilder, Traced, depends_on_input
from lirpa_lip.network.node import Interval, Node, affine_value, own_interval
from lirpa_lip.wrapping.coefficients import dense

Adapter = Callable[[GraphBuilder, Traced], str]
Sides = tuple[Tensor, Tensor]


class TracedOperator(Bound):
    """Base of the classes `operator_class` makes.

    ``needs_matrix``: coefficients reach it as dense matrices only, so convolutions behind it leave patches mode.
    """

    adapter: Adapter
    needs_matrix = True

    def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.varying = [depends_on_input(bound) for bound in self.inputs]
        self.requires_input_bounds = [i for i, varies in enumerate(self.varying) if varies]

    def nodes(self, *x: Tensor) -> list[Node]:
        """What the adapter emits for inputs like ``x`` (batch, *shape); the last node is the operator's output."""
        like = next(t for t, varies in zip(x, self.varying, strict=True) if varies)
        builder = GraphBuilder(like.dtype, like.device, getattr(self, "_model_dtype", None))
        parents: list[str | None] = [f"input{i}" if varies else None for i, varies in enumerate(self.varying)]
        for parent, value in zip(parents, x, strict=True):
            if parent is not None:
                builder.add(Node(parent, "BoundInput", value.shape[1:]))
        operator = type(self).__name__
        traced = Traced(self.name or "", operator, self, self.attr, tuple(parents), None, builder)
        output = type(self).adapter(builder, traced)
        nodes = list(builder.nodes.values())
        return nodes[: [n.name for n in nodes].index(output) + 1]

    def forward(self, *x: Tensor) -> Tensor:
        values = {f"input{i}": value for i, value in enumerate(x)}
        for node in self._emitted(*x):
            parent = values[node.parents[0]]
            values[node.name] = affine_value(node, values) if node.activation is None else node.activation.value(parent)
        return values[node.name]

    def interval_propagate(self, *v: Interval) -> Interval:
        nodes = self._emitted(*(lower for lower, _ in v))
        intervals = _intervals(nodes, {f"input{i}": (low, high) for i, (low, high) in enumerate(v)})
        return intervals[nodes[-1].name]

    # ---- backward mode --------------------------------------------------------------------------------------------
    def bound_backward(self, last_lA: Any, last_uA: Any, *x: Bound, **_: Any):
        values = [bound.lower if varies else None for bound, varies in zip(x, self.varying, strict=True)]
        nodes = self._emitted(*values)
        intervals = _intervals(nodes, {f"input{i}": (b.lower, b.upper) for i, b in enumerate(x) if self.varying[i]})
        lines = {n.name: relaxations(n.activation, *intervals[n.parents[0]])[1] for n in nodes if n.activation}
        found, biases = [], []
        for side, A in enumerate((last_lA, last_uA)):
            A = None if A is None else dense(A, self.output_shape[1:])
            coefficients, bias = ({}, 0) if A is None else self._pull_back(nodes, lines, A, side)
            found.append(coefficients)
            biases.append(bias)
        pairs = [tuple(side.get(f"input{i}") for side in found) for i in range(len(x))]
        return pairs, *biases

    def _pull_back(self, nodes: list[Node], lines: dict[str, Relaxation], A: Tensor, side: int):
        """Coefficients (specs, batch, *shape) of each input, and constants (specs, batch), for those of the output."""
        pending: dict[str, Tensor] = {nodes[-1].name: A.reshape(*A.shape[:2], *nodes[-1].shape)}
        constant: Tensor | float = 0.0
        for node in reversed(nodes):
            A = pending.pop(node.name, None)
            if A is None:
                continue
            if node.activation is not None:
                below, above = lines[node.name][side], lines[node.name][1 - side]
                positive, negative = A.clamp(min=0), A.clamp(max=0)
                constant = constant + _total(positive, below) + _total(negative, above)
                parts = [positive * below.slopes[0] + negative * above.slopes[0]]
            else:
                assert node.maps is not None
                if node.bias is not None:
                    constant = constant + (A * node.bias).flatten(2).sum(2)
                parts = [m.adjoint(A.flatten(0, 1)).unflatten(0, A.shape[:2]) for m in node.maps]
            for parent, part in zip(node.parents, parts, strict=True):
                pending[parent] = pending[parent] + part if parent in pending else part
        return pending, constant

    # ---- forward mode ---------------------------------------------------------------------------------------------
    def bound_forward(self, dim_in: int, *x: LinearBound) -> LinearBound:
        nodes = self._emitted(*(bound.lb for bound in x))
        intervals = _intervals(nodes, {f"input{i}": (b.lower, b.upper) for i, b in enumerate(x) if self.varying[i]})
        linear = {f"input{i}": ((b.lw, b.lb), (b.uw, b.ub)) for i, b in enumerate(x) if self.varying[i]}
        for node in nodes:
            if node.activation is not None:
                relaxation = relaxations(node.activation, *intervals[node.parents[0]])[1]
                linear[node.name] = _through_lines(relaxation, linear[node.parents[0]])
            else:
                linear[node.name] = _through_maps(node, [linear[p] for p in node.parents])
        (lw, lb), (uw, ub) = linear[nodes[-1].name]
        return LinearBound(lw, lb, uw, ub)

    def infer_batch_dim(self, batch_size: int, *x: int) -> int:
        return max(x)

    def _emitted(self, *x: Tensor) -> list[Node]:
        return [n for n in self.nodes(*x) if not n.is_input]


def _intervals(nodes: list[Node], intervals: dict[str, Interval]) -> dict[str, Interval]:
    for node in nodes:
        if node.activation is not None:
            reason = node.activation.outside(*intervals[node.parents[0]])
            if reason:
                raise DomainError(node.name, node.operator, reason)
        intervals[node.name] = own_interval(node, intervals)
    return intervals


def _total(A: Tensor, plane: Plane) -> Tensor:
    """``A · bias`` with 0 · inf = 0."""
    return torch.where(A == 0, 0.0, A * plane.bias).flatten(2).sum(2)


def _through_lines(relaxation: Relaxation, linear: Any):
    sides = []
    for plane, (own, other) in zip(relaxation, (linear, linear[::-1]), strict=True):
        rising, falling = plane.slopes[0].clamp(min=0), plane.slopes[0].clamp(max=0)
        weight = rising.unsqueeze(1) * own[0] + falling.unsqueeze(1) * other[0]
        sides.append((weight, rising * own[1] + falling * other[1] + plane.bias))
    return tuple(sides)


def _through_maps(node: Node, parts: Any):
    """``A`` splits into its positive and negative entries, (A ± |A|)/2; so do centres and half differences."""
    assert node.maps is not None
    sides = []
    for sign in (-1, 1):
        weight, bias = 0.0, 0.0
        for map_, ((lw, lb), (uw, ub)) in zip(node.maps, parts, strict=True):
            size = map_.abs()
            bias = bias + map_.forward((lb + ub) / 2) + sign * size.forward((ub - lb) / 2)
            batch = lw.shape[:2]
            middle, half = ((lw + uw) / 2).flatten(0, 1), ((uw - lw) / 2).flatten(0, 1)
            weight = weight + (map_.forward(middle) + sign * size.forward(half)).unflatten(0, batch)
        sides.append((weight, bias if node.bias is None else bias + node.bias))
    return tuple(sides)


def operator_class(name: str, adapter: Adapter) -> type[TracedOperator]:
    """The bound class of one operator; its name is the key of its adapter in the operator table."""
    return type(name, (TracedOperator,), {"adapter": staticmethod(adapter), "__doc__": adapter.__doc__})
