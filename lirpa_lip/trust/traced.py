"""auto_LiRPA's own evaluation of the traced graph, without a trace of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def restore_node(node: Any, attributes: dict[str, Any]) -> None:
    """Puts back what ``dict(vars(node))`` was."""
    node.__dict__.clear()
    node.__dict__.update(attributes)


@contextmanager
def traced_values(
    bounded: Any, points: tuple[Tensor, ...], change: Callable[[Tensor], Tensor] | None = None, wanted: Any = None
) -> Iterator[dict[str, Tensor]]:
    """Values of traced nodes at ``points``; afterwards the nodes are as they were, with what a call left on them.

    Args:
        change: applied to each value that depends on the input.
        wanted: names of nodes; all of them by default.
    """
    nodes = dict(bounded._modules)
    before = {name: dict(vars(node)) for name, node in nodes.items()}
    gradients = [(p, p.requires_grad) for p in bounded.parameters() if p.is_leaf]
    values: dict[str, Any] = {}
    try:
        with torch.no_grad():
            for name in nodes if wanted is None else wanted:
                _evaluate(bounded, nodes[name], points, values, change)
        yield values
    finally:
        for name, node in nodes.items():
            restore_node(node, before[name])
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)


def _evaluate(bounded: Any, node: Any, points: tuple[Tensor, ...], values: dict[str, Any], change: Any) -> Any:
    if node.name not in values:
        index = getattr(node, "input_index", None)
        if type(node).__name__ == "BoundInput" and index is not None:
            # beyond the model's inputs: what 0.7 adds for the shapes that gradients of a concatenation ask for
            values[node.name] = node.forward_value = points[index] if index < len(points) else node.value
        else:
            parts = [_evaluate(bounded, parent, points, values, change) for parent in node.inputs]
            value = node.forward(*parts)
            if isinstance(value, (torch.Size, tuple)):
                value = torch.tensor(value, device=bounded.device)
            node.input_shape = parts[0].shape if parts else None
            node.output_shape = value.shape
            node.forward_value = value
            values[node.name] = value if change is None or not parts else change(value)
    return values[node.name]


def traced_in_parts(bounded: Any, points: tuple[Tensor, ...], names: list[str], batch: int) -> list[Tensor]:
    total = len(points[0])
    for size in dict.fromkeys((total, batch)):
        found = []
        try:
            for i in range(0, total, size):
                with traced_values(bounded, tuple(p[i : i + size] for p in points), None, names) as values:
                    found.append([values[n].detach() for n in names])
        except Exception:
            if size == batch:
                raise
            continue
        if size == batch or all(len(v) == total for v in found[0]):
            break
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def traced_spread(bounded: Any, points: tuple[Tensor, ...], name: str | None = None) -> float:
    """100 times the largest change of any output that random changes of all nodes, by 8 roundoffs, cause."""
    generator = torch.Generator().manual_seed(0)
    name = name or bounded.output_name[0]

    def shaken(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        noise = torch.rand(value.shape, generator=generator, dtype=value.dtype).to(value.device) * 2 - 1
        return value * (1 + 8 * torch.finfo(value.dtype).eps * noise)

    found = []
    for change in (None, shaken):
        with traced_values(bounded, points, change, [name]) as values:
            found.append(values[name].detach().double())
    return 100 * float((found[1] - found[0]).abs().max())
