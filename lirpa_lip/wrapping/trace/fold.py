"""Parts of a trace that depend on parameters alone, taken out of it: each becomes one leaf, computed when it is read.

A parametrised weight (spectral norm, weight norm, an orthogonal map), a pruned one, ``2 * W`` or ``W.t()`` is a small
program over parameters. ONNX has no form for many of its operators, and auto_LiRPA no rule for a product of two
constants. Here it is replayed, with PyTorch's own operators and thus PyTorch's own rounding, from the parameters as
they are at that moment; gradients reach them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.wrapping.trace.dependence import Dependence, dtype

#: Operators that are no operators of PyTorch's, as functions of their arguments.
_STRUCTURE: dict[str, Callable[..., Any]] = {
    "prim::ListConstruct": lambda *a: list(a),
    "prim::TupleConstruct": lambda *a: tuple(a),
    "prim::ListUnpack": lambda a: tuple(a),
    "prim::TupleUnpack": lambda a: tuple(a),
    "prim::NumToTensor": torch.tensor,
    "aten::Int": int,
    "aten::Float": float,
    "aten::ScalarImplicit": lambda a: a.item(),
}


@dataclass(frozen=True)
class Live:
    """A parameter or buffer of a module, looked up by its place in it, since ``.to()`` puts new buffers there."""

    owner: nn.Module
    name: str

    @property
    def value(self) -> Tensor:
        return getattr(self.owner, self.name)

    def __deepcopy__(self, memo: dict) -> Live:
        return self  # a copy of the bounds speaks of the same model


@dataclass(frozen=True)
class Step:
    """One operator: its kind and overload, the names of its arguments (the last ones by keyword) and of its results."""

    kind: str
    overload: str
    arguments: tuple[str, ...]
    keywords: tuple[str, ...]
    results: tuple[str, ...]

    @classmethod
    def of(cls, node: Any) -> Step:
        """
        Raises:
            KeyError: there is no function for this kind of node.
        """
        kind = node.kind()
        arguments = tuple(v.debugName() for v in node.inputs())
        results = tuple(v.debugName() for v in node.outputs())
        if kind in _STRUCTURE:
            return cls(kind, "", arguments, (), results)
        if not kind.startswith("aten::") or node.schema() == "(no schema)":
            raise KeyError(kind)
        schema = torch._C.parse_schema(node.schema())
        keywords = tuple(a.name for a in schema.arguments if a.kwarg_only)[: len(arguments)]
        return cls(kind, schema.overload_name or "default", arguments, keywords, results)

    def run(self, values: list[Any]) -> Any:
        if self.kind in _STRUCTURE:
            return _STRUCTURE[self.kind](*values)
        function = getattr(getattr(torch.ops.aten, self.kind[6:]), self.overload)
        plain = len(values) - len(self.keywords)
        return function(*values[:plain], **dict(zip(self.keywords, values[plain:])))


@dataclass
class Folded:
    """A value computed from parameters and constants; `value` replays the computation.

    Attributes:
        name: of the leaf that holds it.
        steps, constants, parameters: the computation, its constants and its parameters by name.
        result: name of the last value.
    """

    name: str
    steps: list[Step] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Live] = field(default_factory=dict)
    result: str = ""

    def value(self) -> Tensor:
        """The value as the parameters are now, on their device."""
        values: dict[str, Any] = {name: live.value for name, live in self.parameters.items()}
        device = next((t.device for t in values.values()), torch.device("cpu"))
        values.update((name, _moved(constant, device)) for name, constant in self.constants.items())
        for step in self.steps:
            out = step.run([values[name] for name in step.arguments])
            several = len(step.results) != 1 or step.kind in ("prim::ListUnpack", "prim::TupleUnpack")
            values.update(zip(step.results, out if several else (out,)))
        return values[self.result]


def _moved(constant: Any, device: torch.device) -> Any:
    """The trace was made on the CPU, and says so where a device is an argument."""
    if isinstance(constant, torch.device):
        return device
    return constant.to(device) if isinstance(constant, Tensor) and constant.ndim else constant


def fold(graph: Any, depends: Dependence, inputs: int, live: list[Live | None]) -> list[Folded]:
    """Replaces, in the trace, every value that parameters alone determine by a new input of the graph.

    Args:
        graph: the ``torch._C.Graph``; its inputs are the network's (``inputs`` of them), then the parameters.
        live: the parameters; ``None`` for one that must stay as it is (it is perturbed itself).

    Returns:
        What the new inputs hold, in order.
    """
    places = {v.debugName(): i for i, v in enumerate(list(graph.inputs())[inputs:])}
    constant = [n for n in graph.nodes() if all(depends.constant(v) for v in (*n.inputs(), *n.outputs()))]
    if any(_writes(n) for n in graph.nodes() if _mixes(n, depends)):
        return []  # a constant is overwritten by something that is none
    found: list[Folded] = []
    made = {v.debugName(): n for n in constant for v in n.outputs()}
    for value in _wanted(graph, depends, made):
        folded = _program(value, constant, made, places, live)
        if folded is None:
            continue
        leaf = graph.addInput()
        leaf.setType(torch._C.TensorType.create_from_tensor(folded.value().detach()))
        folded.name = f"folded_{len(found)}"
        value.replaceAllUsesWith(leaf)
        found.append(folded)
    if not _wanted(graph, depends, made):
        # what writes into constants is nothing to dead code elimination, and unknown to ONNX
        for node in reversed([n for n in constant if _writes(n)]):
            if not any(v.uses() for v in node.outputs()):
                node.destroy()
    return found


def _wanted(graph: Any, depends: Dependence, made: dict[str, Any]) -> list[Any]:
    """Constant tensors that an operator of the network reads, in the order of the trace."""
    wanted: dict[str, Any] = {}
    for node in graph.nodes():
        if not any(depends.varies(v) for v in node.inputs()):
            continue
        pending = list(node.inputs())
        while pending:
            value = pending.pop(0)
            maker = made.get(value.debugName())
            if maker is None:
                continue
            if maker.kind() == "prim::ListConstruct":
                pending = [*maker.inputs(), *pending]
            elif maker.kind() != "prim::Constant" and (dtype(value) or torch.long).is_floating_point:
                wanted[value.debugName()] = value
    return list(wanted.values())


def _program(value: Any, constant: list[Any], made: dict[str, Any], places: dict[str, int], live: Any) -> Folded | None:
    """How ``value`` is computed; ``None`` if no parameter enters, or an operator has no function."""
    folded = Folded("", result=value.debugName())
    needed, pending = set(), [value.debugName()]
    writes = [n for n in constant if _writes(n)]
    if writes:  # then the order counts of everything before it is read
        own = {v.debugName() for n in constant for v in n.outputs()}
        readers = [use.user for use in value.uses() if not own & {v.debugName() for v in use.user.outputs()}]
        states = {sum(w.isBefore(reader) for w in writes) for reader in readers}
        if len(states) != 1 or any(use.user.kind() == "prim::ListConstruct" for use in value.uses()):
            return None
        pending += [v.debugName() for n in constant if n.isBefore(readers[0]) for v in n.outputs()]
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in made:
            pending += [v.debugName() for v in made[name].inputs()]
        elif name in places:
            source = live[places[name]]
            if source is None:
                return None
            folded.parameters[name] = source
    for node in constant:
        results = tuple(v.debugName() for v in node.outputs())
        if not needed & set(results):
            continue
        if node.kind() == "prim::Constant":
            folded.constants[results[0]] = node.output().toIValue()
            continue
        try:
            folded.steps.append(Step.of(node))
        except KeyError:
            return None
    return folded if folded.parameters else None


def _writes(node: Any) -> bool:
    name = node.kind().split("::")[-1]
    return node.kind().startswith("aten::") and name.endswith("_") and not name.endswith("__")


def _mixes(node: Any, depends: Dependence) -> bool:
    """Whether it reads the network's values and its first argument is a constant."""
    values = list(node.inputs())
    return bool(values) and depends.constant(values[0]) and any(depends.varies(v) for v in values)
