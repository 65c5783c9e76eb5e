"""The network as the bounds see it: affine nodes and elementwise activations, read off a traced auto_LiRPA graph.

Only two kinds of node exist. An *affine* node is ``z = sum_p A_p z_p + b`` over its parents; additions, slices and
concatenations are affine nodes like any convolution. An *activation* node applies one elementwise function. Operators
which are neither are rewritten into several such nodes by their adapter in `lirpa_lip.operators`; this file
knows no operator's mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .errors import NonFiniteError, ShapeError, UnsupportedOperatorError
from .norms.linear_map import LinearMap
from .operators.traits import Activation, SortedInput

Enclosure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Node:
    """One node. Exactly one of ``maps`` and ``activation`` is set, or neither for the input.

    Attributes:
        name: unique name; the traced node's, with a suffix where it was rewritten into several.
        operator: the traced operator's class name, for messages.
        shape: output shape of one sample, without the batch axis.
        parents: names of the nodes it reads.
        maps, bias: of an affine node, a map per parent and a constant that broadcasts to ``(1, *shape)``.
        activation: of an activation node.
        shortcut: ``(ancestor, f)`` where ``f`` turns bounds of that ancestor into bounds of this node more tightly
            than a walk through the nodes between would (the rewritten operator's own interval rule).
        isometry_of: of an activation that clips the outputs of a pairwise sort, where that sort's input is; see
            `lirpa_lip.lipschitz.product`.
    """

    name: str
    operator: str
    shape: torch.Size
    parents: tuple[str, ...] = ()
    maps: tuple[LinearMap, ...] | None = None
    bias: Tensor | None = None
    activation: Activation | None = None
    shortcut: tuple[str, Enclosure] | None = None
    isometry_of: SortedInput | None = None

    @property
    def is_input(self) -> bool:
        return not self.parents


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

    def to(self, dtype: torch.dtype) -> NetworkGraph:
        """The same network with maps and biases in another precision; activations convert as they are used."""
        if dtype == self.dtype:
            return self
        nodes = {}
        for node in self:
            if node.maps is not None:
                bias = None if node.bias is None else node.bias.to(dtype)
                node = replace(node, maps=tuple(m.to(dtype) for m in node.maps), bias=bias)
            nodes[node.name] = node
        return NetworkGraph(nodes, self.input, self.output, dtype, self.device)

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


def affine_value(node: Node, values: Mapping[str, Tensor]) -> Tensor:
    """``sum_p A_p values[p] + b`` of an affine node."""
    total = sum(m.forward(values[p]) for m, p in zip(node.maps, node.parents))
    return total if node.bias is None else total + node.bias


class GraphBuilder:
    """Collects nodes; what adapters emit into, and all they may use.

    Attributes:
        nodes: what has been emitted so far.
        dtype, device: of the network's parameters.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.nodes: dict[str, Node] = {}
        self.dtype, self.device = dtype, device

    def add(self, node: Node) -> str:
        self.nodes[node.name] = node
        return node.name

    def affine(self, name, operator, parents, maps, bias=None, shortcut=None) -> str:
        """Emits ``z = sum_p A_p z_p + bias``."""
        shape = maps[0].out_shape
        return self.add(Node(name, operator, shape, tuple(parents), maps=tuple(maps), bias=bias, shortcut=shortcut))

    def activation(self, name, operator, parent, activation: Activation, isometry_of=None) -> str:
        """Emits an elementwise function."""
        shape = self.nodes[parent].shape
        return self.add(
            Node(name, operator, shape, (parent,), activation=activation, isometry_of=isometry_of)
        )

    def shape(self, name: str) -> torch.Size:
        return self.nodes[name].shape


@dataclass(frozen=True)
class Traced:
    """One traced operator, as an adapter sees it.

    Attributes:
        name, operator: of the traced node.
        bound: the auto_LiRPA bound object (attributes, sub-modules).
        attr: its ONNX attributes.
        parents: names of emitted nodes for inputs that depend on the network's input, ``None`` for constants.
        shape: output shape of one sample.
    """

    name: str
    operator: str
    bound: object
    attr: Mapping
    parents: tuple[str | None, ...]
    shape: torch.Size

    def constant(self, index: int) -> Tensor | None:
        """Value of a constant input (weight, bias, threshold), differentiable; ``None`` if there is no such input."""
        if index >= len(self.bound.inputs):
            return None
        return constant_value(self.bound.inputs[index])

    @property
    def parent(self) -> str:
        """The only input that depends on the network's input, which must be the first."""
        if self.parents[0] is None or any(p is not None for p in self.parents[1:]):
            raise self.unsupported("only its first input may depend on the network's input")
        return self.parents[0]

    def unsupported(self, reason: str) -> UnsupportedOperatorError:
        return UnsupportedOperatorError(self.name, self.operator, reason=reason)


def constant_value(bound) -> Tensor:
    """Value of a traced node that does not depend on the network's input; parameters stay differentiable."""
    if not bound.inputs:
        return bound.forward()
    if type(bound).__name__ == "BoundShape":
        return bound.forward_value
    return bound.forward(*(constant_value(i) for i in bound.inputs))


def build_graph(bounded) -> NetworkGraph:
    """Reads a traced auto_LiRPA ``BoundedModule``.

    Parameters are referenced, not copied, so a graph is valid until the model's structure changes, and bounds made
    from it are differentiable with respect to them.

    Raises:
        UnsupportedOperatorError: naming the first node without an adapter.
        ShapeError: a node which lost the batch axis.
    """
    from .operators.table import ADAPTERS

    order, dependent, root = _walk(bounded)
    first = next((p for p in bounded.parameters() if p.is_floating_point()), None)
    reference = first if first is not None else root.value
    builder = GraphBuilder(reference.dtype, reference.device)
    emitted: dict[str, str] = {}
    for bound in order:
        operator = type(bound).__name__
        shape = _sample_shape(bound, root)
        if bound is root:
            emitted[bound.name] = builder.add(Node(bound.name, operator, shape))
            continue
        if operator not in ADAPTERS:
            raise UnsupportedOperatorError(bound.name, operator, ADAPTERS)
        parents = tuple(emitted[i.name] if i.name in dependent else None for i in bound.inputs)
        attr = bound.attr if isinstance(bound.attr, dict) else {}
        emitted[bound.name] = ADAPTERS[operator](builder, Traced(bound.name, operator, bound, attr, parents, shape))
    output = emitted[order[-1].name]
    whole = NetworkGraph(builder.nodes, emitted[root.name], output, builder.dtype, builder.device)
    # adapters that recognise a pattern (x * sigmoid(x)) leave its parts behind
    used = {name: builder.nodes[name] for name in whole.ancestors(output)}
    return NetworkGraph(used, whole.input, output, builder.dtype, builder.device)


def _walk(bounded):
    """Nodes that lie between the network's input and its output, in topological order; their names; the input."""
    final = bounded.final_node()
    order, state = [], {}

    def visit(node) -> bool:
        if node.name not in state:
            kind = type(node).__name__
            reached = kind == "BoundInput" and getattr(node, "input_index", 0) is not None
            if kind != "BoundShape":
                reached = any([visit(i) for i in node.inputs]) or reached
            state[node.name] = reached
            if reached:
                order.append(node)
        return state[node.name]

    if not visit(final):
        raise UnsupportedOperatorError(final.name, type(final).__name__, reason="the output is a constant")
    roots = [n for n in order if type(n).__name__ == "BoundInput"]
    if len(roots) != 1:
        raise UnsupportedOperatorError(
            roots[-1].name, "BoundInput", reason=f"the model has {len(roots)} inputs and bounds are for one"
        )
    return order, {n.name for n in order}, roots[0]


def _sample_shape(bound, root) -> torch.Size:
    shape = root.value.shape if bound is root else bound.output_shape
    if len(shape) < 2:
        raise ShapeError(
            f"node {bound.name!r} has shape {tuple(shape)}; every value needs a batch axis first and one more axis."
        )
    return torch.Size(shape[1:])
