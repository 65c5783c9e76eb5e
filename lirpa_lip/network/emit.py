"""What an adapter is given: the traced operator it reads, and the builder it emits nodes into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, SortedInput
from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.network.node import Node, Shortcut
from lirpa_lip.norms.linear_map import LinearMap


class GraphBuilder:
    """Collects nodes; what adapters emit into, and all they may use.

    Attributes:
        nodes: what has been emitted so far.
        dtype: what constants are converted to, before anything is computed from them.
        model_dtype: what the network computes in, and rounds its numbers to.
        device: of the network's parameters.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, model_dtype: torch.dtype | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        self.dtype, self.device, self.model_dtype = dtype, device, model_dtype or dtype

    def add(self, node: Node) -> str:
        self.nodes[node.name] = node
        return node.name

    def affine(
        self,
        name: str,
        operator: str,
        parents: Iterable[str],
        maps: Sequence[LinearMap],
        bias: Tensor | None = None,
        *,
        shortcut: Shortcut | None = None,
        bias_size: Tensor | None = None,
    ) -> str:
        """Emits ``z = sum_p A_p z_p + bias``."""
        shape, maps = maps[0].out_shape, tuple(maps)
        node = Node(name, operator, shape, tuple(parents), maps, bias, shortcut=shortcut, bias_size=bias_size)
        return self.add(node)

    def activation(
        self, name: str, operator: str, parent: str, activation: Activation, isometry_of: SortedInput | None = None
    ) -> str:
        """Emits an elementwise function."""
        shape = self.nodes[parent].shape
        return self.add(Node(name, operator, shape, (parent,), activation=activation, isometry_of=isometry_of))

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
        shape: output shape of one sample; ``None`` where an adapter is to find it itself (a class of
            `lirpa_lip.wrapping.traced_operator` computes a value nobody knows yet).
    """

    name: str
    operator: str
    bound: Any
    attr: Mapping
    parents: tuple[str | None, ...]
    shape: Any
    builder: GraphBuilder

    def constant(self, index: int) -> Any:
        """Value of a constant input (weight, bias, threshold), differentiable; ``None`` if there is no such input.

        It is computed as the network does and then converted: what an adapter computes from it is more precise.
        """
        if index >= len(self.bound.inputs):
            return None
        value = constant_value(self.bound.inputs[index])
        return value.to(self.builder.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def number(self, value: Any) -> float:
        """A number given to an operator (a slope, a threshold), as the network's precision holds it."""
        return float(torch.as_tensor(value, dtype=torch.float64).to(self.builder.model_dtype))

    @property
    def parent(self) -> str:
        """The only input that depends on the network's input, which must be the first."""
        if self.parents[0] is None or any(p is not None for p in self.parents[1:]):
            raise self.unsupported("only its first input may depend on the network's input")
        return self.parents[0]

    def varying(self, index: int) -> str:
        """An input that depends on the network's input."""
        parent = self.parents[index]
        if parent is None:
            raise self.unsupported(f"its input {index} is constant")
        return parent

    def unsupported(self, reason: str) -> UnsupportedOperatorError:
        return UnsupportedOperatorError(self.name, self.operator, reason=reason)


def constant_value(bound: Any) -> Tensor:
    """Value of a traced node that does not depend on the network's input; parameters stay differentiable."""
    if not bound.inputs:
        return bound.forward()
    if type(bound).__name__ == "BoundShape":
        known = getattr(bound, "forward_value", None)  # auto_LiRPA forgets it with the values of a call
        return _shape_of(bound.inputs[0]) if known is None else known
    return bound.forward(*(constant_value(i) for i in bound.inputs))


def _shape_of(bound: Any) -> Tensor:
    value = getattr(bound, "value", None)
    return torch.tensor(value.shape if isinstance(value, Tensor) else bound.output_shape)


def depends_on_input(bound: Any) -> bool:
    """Whether a traced node, or what it is computed from, is an input of the model (parameters are not)."""
    pending, seen = [bound], set()
    while pending:
        node = pending.pop()
        if id(node) in seen or type(node).__name__ == "BoundShape":
            continue
        seen.add(id(node))
        if type(node).__name__ == "BoundInput" and getattr(node, "input_index", 0) is not None:
            return True
        pending.extend(node.inputs)
    return False


def may_vary(bound: Any) -> bool:
    """Whether a traced node depends on the network's input, or on a perturbed parameter."""
    pending, seen = [bound], set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if getattr(node, "perturbation", None) is not None:
            return True
        pending.extend(node.inputs)
    return depends_on_input(bound)
