"""The network as the bounds see it: affine nodes and elementwise activations, read off a traced auto_LiRPA graph.

Only two kinds of node exist. An *affine* node is ``z = sum_p A_p z_p + b`` over its parents; additions, slices and
concatenations are affine nodes like any convolution. An *activation* node applies one elementwise function. Operators
which are neither are rewritten into several such nodes by their adapter in `lirpa_lip.network.adapters`; this file
knows no operator's mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.autolirpa.arguments import wrapped_dtype
from lirpa_lip.errors import NonFiniteError, ShapeError, UnsupportedOperatorError
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.network.node import Node, affine_value


@dataclass(frozen=True)
class NetworkGraph:
    """Nodes in topological order, from the input to the output; read-only.

    ``nodes`` maps names to nodes; iteration order is topological.
    """

    nodes: Mapping[str, Node]
    input: str
    output: str
    dtype: torch.dtype
    device: torch.device
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def activations(self) -> list[Node]:
        """Activation nodes in topological order."""
        return [n for n in self if n.activation is not None]

    @property
    def has_products(self) -> bool:
        """Whether values of the network are multiplied somewhere."""
        key = ("has products",)
        if key not in self._cache:
            self._cache[key] = any(node.factors for node in self)
        return self._cache[key]

    def sources(self, name: str) -> list[str]:
        """The input and activation nodes that reach ``name`` through affine nodes only, in topological order."""
        key = ("sources", name)
        if key not in self._cache:
            node = self[name]
            if node.maps is None:
                found = {name}
            else:
                found = {s for p in node.parents for s in self.sources(p)}
            self._cache[key] = [n for n in self.nodes if n in found]
        return self._cache[key]

    def ancestors(self, name: str) -> list[str]:
        """``name`` and all nodes it depends on, in topological order."""
        key = ("ancestors", name)
        if key not in self._cache:
            found = {name}
            for node in reversed(list(self)):
                if node.name in found:
                    found.update(node.parents)
            self._cache[key] = [n for n in self.nodes if n in found]
        return self._cache[key]

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every node's value at ``x (batch, *input_shape)``."""
        if x.shape[1:] != self[self.input].shape:
            raise ShapeError(
                f"the input has shape {tuple(x.shape)}, expected (batch, *{tuple(self[self.input].shape)}), "
                "the shape the model was wrapped with."
            )
        values = {self.input: x}
        for node in self:
            if node.activation is not None:
                values[node.name] = node.activation.value(values[node.parents[0]])
            elif node.maps is not None:
                values[node.name] = affine_value(node, values)
        return values

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> NetworkGraph:
        """The same network with maps and biases in another precision, or elsewhere; activations convert as used."""
        device = self.device if device is None else torch.device(device)
        if dtype == self.dtype and device == self.device:
            return self
        nodes = {}
        for node in self:
            if node.maps is not None:
                bias = None if node.bias is None else node.bias.to(device, dtype)
                size = None if node.bias_size is None else node.bias_size.to(device, dtype)
                node = replace(node, maps=tuple(m.to(dtype, device) for m in node.maps), bias=bias, bias_size=size)
            nodes[node.name] = node
        return NetworkGraph(nodes, self.input, self.output, dtype, device)

    def parameters(self) -> list[Tensor]:
        """Tensors that require gradients, through which bounds are differentiable."""
        tensors = []
        for node in self:
            if node.maps is not None:
                tensors += [t for m in node.maps for t in m.tensors()]
                tensors += [] if node.bias is None else [node.bias]
            elif node.activation is not None:
                tensors += node.activation.parameters()
        return [t for t in tensors if t.requires_grad]

    def check_finite(self) -> None:
        """Raises `NonFiniteError` where a weight, bias or threshold is NaN or infinite."""
        for node in self:
            tensors = [] if node.maps is None else [t for m in node.maps for t in m.tensors()]
            tensors += [] if node.bias is None else [node.bias]
            tensors += [] if node.activation is None else node.activation.parameters()
            if not all(bool(torch.isfinite(t).all()) for t in tensors):
                raise NonFiniteError(f"a parameter of {node.operator} at node {node.name!r}")


def model_dtype(bounded: Any) -> torch.dtype:
    """The precision a traced network computes in: that of its parameters, or of its input if it has none."""
    return wrapped_dtype(bounded, _walk(bounded)[2].value.dtype)


def build_graph(bounded: Any, dtype: torch.dtype | None = None) -> NetworkGraph:
    """Reads a traced auto_LiRPA ``BoundedModule``.

    Parameters are referenced, not copied, so a graph is valid until the model's structure changes, and bounds made
    from it are differentiable with respect to them.

    Args:
        dtype: the precision of the graph, by default the network's. Constants are converted to it before anything is
            computed from them (the scale of a batch norm, the reciprocal of a divisor), so that in float64 no float32
            rounding of ours is left in them; what the network itself computes from constants, it computes as it does.

    Raises:
        UnsupportedOperatorError: naming the first node without an adapter.
        ShapeError: a node which lost the batch axis.
    """
    from lirpa_lip.network.adapters.table import ADAPTERS, REFUSED

    order, dependent, root = _walk(bounded)
    shapes = getattr(bounded, "_traced_shapes", {})  # a call of auto_LiRPA's changes those on its nodes
    first = next((p for p in bounded.parameters() if p.is_floating_point()), None)
    device, own = (root.value if first is None else first).device, wrapped_dtype(bounded, root.value.dtype)
    builder = GraphBuilder(dtype or own, device, own)
    emitted: dict[str, str] = {}
    for bound in order:
        operator = type(bound).__name__
        shape = torch.Size(_shape(bound, root, shapes)[1:])
        if bound is root:
            emitted[bound.name] = builder.add(Node(bound.name, operator, shape))
            continue
        if operator not in ADAPTERS:
            raise UnsupportedOperatorError(bound.name, operator, ADAPTERS, REFUSED.get(operator, ""))
        parents = tuple(emitted[i.name] if i.name in dependent else None for i in bound.inputs)
        attr = bound.attr if isinstance(bound.attr, dict) else {}
        traced = Traced(bound.name, operator, bound, attr, parents, shape, builder)
        emitted[bound.name] = ADAPTERS[operator](builder, traced)
    output = emitted[order[-1].name]
    whole = NetworkGraph(builder.nodes, emitted[root.name], output, builder.dtype, builder.device)
    # adapters that recognise a pattern (x * sigmoid(x)) leave its parts behind
    used = {name: builder.nodes[name] for name in whole.ancestors(output)}
    scalar = next((b for b in order if emitted[b.name] in used and len(_shape(b, root, shapes)) < 2), None)
    if scalar is not None:  # asked last, so that an unsupported operator (softmax) is named first
        found = tuple(_shape(scalar, root, shapes))
        raise ShapeError(
            f"node {scalar.name!r} has shape {found}; every value needs a batch axis first and "
            "one more axis: keep the reduced axis (keepdim=True)."
        )
    return NetworkGraph(used, whole.input, output, builder.dtype, builder.device)


def _walk(bounded: Any):
    """Nodes that lie between the network's input and its output, in topological order; their names; the input."""
    final = bounded.final_node()
    order, state = [], {}

    def visit(node: Any) -> bool:
        if node.name not in state:
            kind = type(node).__name__
            reached = kind == "BoundInput" and getattr(node, "input_index", 0) is not None
            if kind != "BoundShape":
                reached = any([visit(i) for i in node.inputs]) or reached  # noqa: C419  (visit every one)
            state[node.name] = reached
            if reached:
                order.append(node)
        return state[node.name]

    if not visit(final):
        raise UnsupportedOperatorError(final.name, type(final).__name__, reason="the output is a constant")
    roots = [n for n in order if type(n).__name__ == "BoundInput"]
    if len(roots) != 1:
        raise UnsupportedOperatorError(
            roots[-1].name,
            "BoundInput",
            reason=f"the model has {len(roots)} inputs and bounds are for one: wrap it in a module that takes one "
            "tensor and splits it (x[:, :n], x[:, n:]), or that keeps the inputs which do not vary as buffers",
        )
    return order, {n.name for n in order}, roots[0]


def _shape(bound: Any, root: Any, traced: Mapping[str, torch.Size]) -> torch.Size:
    if bound.name in traced:
        return traced[bound.name]
    return root.value.shape if bound is root else bound.output_shape
