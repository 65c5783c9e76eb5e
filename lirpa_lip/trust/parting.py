"""Where graph and model part: what a mismatch is explained by. Runs only when there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lirpa_lip.errors import TraceMismatchError
from lirpa_lip.network.graph import build_graph
from lirpa_lip.trust.live import model_of
from lirpa_lip.trust.traced import traced_values


def mismatch(bounded: Any, points: tuple[Tensor, ...], found: float, expected: float, tolerance: float):
    node, reason = "", ""
    try:
        node, reason = _parting(bounded, points)
    except Exception:  # the search must not hide what it explains
        reason = "where they part could not be found."
    if getattr(bounded, "_passed_the_gate", False):
        reason += (
            " When the model was wrapped they agreed: a number or plain tensor that the model holds has changed, a "
            "sub-module was replaced, or its forward depends on more than its input. Wrap the model again; what "
            "changes belongs into parameters or buffers."
        )
    else:
        reason += " An option of this operator is lost in tracing: write it by other operators, or leave it out."
    return TraceMismatchError(found, expected, tolerance, node, reason.strip())


def _parting(bounded: Any, points: tuple[Tensor, ...]) -> tuple[str, str]:
    """The first traced node whose value our nodes, or the model's operators, never take."""
    with traced_values(bounded, points) as values:
        traced = {name: v for name, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    produced = _produced(model_of(bounded), points)
    order = [n for n in bounded._modules.values() if n.name in traced and n.inputs]
    for node in _topological(order):
        value = traced[node.name]
        if len(value) == len(points[0]) and not any(_same(value, p) for p in produced):
            kind = type(node).__name__
            return f"{node.name!r} ({kind})", f"No operation of the model has the value that {kind} has in the graph."
    graph = build_graph(bounded)
    ours = graph.values(points[0].to(graph.dtype))
    for node in graph:
        value = traced.get(node.name)
        if value is not None and value.numel() == ours[node.name].numel() and not _same(ours[node.name], value):
            return f"{node.name!r} ({node.operator})", f"The rule for {node.operator} does not compute what it does."
    return "", "It computes the model's values otherwise, but not at these inputs."


def _topological(nodes: list) -> list:
    names, order, seen = {n.name for n in nodes}, [], set()

    def visit(node: Any) -> None:
        if node.name in seen:
            return
        seen.add(node.name)
        for parent in node.inputs:
            visit(parent)
        if node.name in names:
            order.append(node)

    for node in nodes:
        visit(node)
    return order


def _produced(model: Any, points: tuple[Tensor, ...]) -> list[Tensor]:
    """Every floating-point value that the model's operators compute on the way."""
    found: list[Tensor] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            found.extend(t.clone() for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point())
            return result

    with torch.no_grad(), Recorder():
        model(*(p.clone() for p in points))
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel():
        return False
    a, b = a.reshape(-1).double(), b.reshape(-1).double()
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-30) if a.numel() else 1.0
    return bool(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))
