"""Values of a trace that no value of the network enters, computed while it is rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lirpa_lip.wrapping.trace.dependence import argument, sizes
from lirpa_lip.wrapping.trace.fold import Step


def evaluate(value: Any, parameters: Mapping[str, Any]) -> Any:
    """What a value holds; ``...`` for one that depends on the network's input or that no function computes.

    Args:
        value: of a ``torch._C.Graph``.
        parameters: values of the graph's inputs behind the network's, by name. What is computed from them is what it
            was when traced: the comparison of graph and model finds later changes.
    """
    if value.debugName() in parameters:
        return parameters[value.debugName()]
    node = value.node()
    if node.kind() == "prim::Constant":
        return node.output().toIValue()
    if node.kind() == "aten::size":
        shape, axis = sizes(next(iter(node.inputs()))), argument(node, 1)
        return shape[axis] if shape and isinstance(axis, int) else ...
    name = node.kind().split("::")[-1]
    # whether nothing else reads what it writes to
    fresh = name == "masked_fill_" and len(next(iter(node.inputs())).uses()) == 1
    if node.kind() == "prim::Param" or (name.endswith("_") and not name.endswith("__") and not fresh):
        return ...
    arguments = [evaluate(v, parameters) for v in node.inputs()]
    if any(a is ... for a in arguments):
        return ...
    if fresh:
        arguments[0] = arguments[0].clone()
    try:
        step = Step.of(node)
    except KeyError:
        return ...
    found = step.run(arguments)
    several = len(step.results) != 1 or step.kind in ("prim::ListUnpack", "prim::TupleUnpack")
    return found[step.results.index(value.debugName())] if several else found
