"""One node of the network the bounds walk, its value and its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, SortedInput
from lirpa_lip.errors import InvalidBoundError
from lirpa_lip.norms.linear_map import LinearMap

Interval = tuple[Tensor, Tensor]
Enclosure = Callable[[Tensor, Tensor], Interval]
#: An ancestor, and what turns its bounds into those of a node.
Shortcut = tuple[str, Enclosure]


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
            `lirpa_lip.local.product`.
        factors: the parent holds the two factors of a product side by side, ``(2, *shape)``, and the scale of one may
            be shifted to the other (`lirpa_lip.network.balance`).
        roundings: roundings, beside those of its nodes, that the operator's own evaluation may have.
        bias_size: of a bias that is a difference of larger numbers, their sizes; ``None`` for ``|bias|``.
    """

    name: str
    operator: str
    shape: torch.Size
    parents: tuple[str, ...] = ()
    maps: tuple[LinearMap, ...] | None = None
    bias: Tensor | None = None
    activation: Activation | None = None
    shortcut: Shortcut | None = None
    isometry_of: SortedInput | None = None
    bias_size: Tensor | None = None
    factors: bool = False
    roundings: int = 0

    @property
    def is_input(self) -> bool:
        return not self.parents


def affine_value(node: Node, values: Mapping[str, Tensor]) -> Tensor:
    """``sum_p A_p values[p] + b`` of an affine node, or what its shortcut gives; all nodes before it have values."""
    assert node.maps is not None
    if node.shortcut is not None:
        # the operator's own rule on a point: it selects, where the walk would add and subtract
        ancestor, enclose = node.shortcut
        return enclose(values[ancestor], values[ancestor])[0]
    first, *others = (m.forward(values[p]) for m, p in zip(node.maps, node.parents, strict=True))
    total = sum(others, first)
    return total if node.bias is None else total + node.bias


def node_interval(
    node: Node, intervals: Mapping[str, Interval], slack: Tensor | None = None, strict: bool = False
) -> Interval:
    """Bounds of one node from those of the nodes before it, by interval arithmetic.

    An affine node maps centres by A and half widths by |A|; an activation uses its own range; a node with a shortcut
    also applies it and keeps the tighter.

    Args:
        slack: what rounding may add to an affine node's bounds; of a shortcut, which only selects, none is needed.
        strict: all is counted and no domain is empty, so that a contradiction is an error.
    """
    if node.activation is not None:
        lower, upper = node.activation.interval(*intervals[node.parents[0]])
    else:
        assert node.maps is not None
        ends = [(map_, *intervals[parent]) for map_, parent in zip(node.maps, node.parents, strict=True)]
        first, *others = (map_.forward((low + high) / 2) for map_, low, high in ends)
        centre = sum(others, first)
        first, *others = (map_.abs().forward((high - low) / 2) for map_, low, high in ends)
        width = sum(others, first)
        if node.bias is not None:
            centre = centre + node.bias
        width = width if slack is None else width + slack
        lower, upper = centre - width, centre + width
        if all(map_.nonnegative for map_ in node.maps):
            lower = _no_less_than_its_constant(node, lower, [low for _, low, _ in ends])
            upper = torch.maximum(lower, upper)
    if node.shortcut is not None:
        ancestor, enclose = node.shortcut
        exact = enclose(*intervals[ancestor])
        between = None if not strict else (node.name, "interval arithmetic", f"the own rule of {node.operator}")
        lower, upper = intersect((lower, upper), exact, between)
    return lower, upper


def _no_less_than_its_constant(node: Node, lower: Tensor, before: Sequence[Tensor]) -> Tensor:
    """``lower``, raised in samples where all that is added up is not negative: no rounding takes a sum of squares
    below 0, so that it has a root."""
    added = torch.stack([(low >= 0).flatten(1).all(1).expand(len(lower)) for low in before]).all(0)
    least = torch.zeros_like(lower) if node.bias is None else node.bias
    return torch.where(added.reshape(-1, *[1] * (lower.ndim - 1)), torch.maximum(lower, least), lower)


def own_interval(node: Node, intervals: Mapping[str, Interval]) -> Interval:
    """`node_interval` by the shortcut alone where there is one: exact, where the walk has rounding nobody counts."""
    if node.shortcut is None:
        return node_interval(node, intervals)
    ancestor, enclose = node.shortcut
    return enclose(*intervals[ancestor])


def intersect(a: Interval, b: Interval, between: tuple[str, str, str] | None = None) -> Interval:
    """Intersection of two valid enclosures; where rounding makes it empty, the wider of the two ends is kept.

    Args:
        between: ``(node, what a is, what b is)`` of enclosures that have their rounding in them already.

    Raises:
        InvalidBoundError: these have nothing in common, so that one of them is no bound.
    """
    lower, upper = torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])
    crossed = lower > upper
    if between is not None and bool(crossed.any()):
        node, first, second = between
        gap = float((lower - upper).detach()[crossed].max())
        reason = f"{first} and {second} at node {node!r} are {gap:.3g} apart, so that one of the two is no bound"
        raise InvalidBoundError(second, reason, "leave one of them out, and please report the model")
    return torch.where(crossed, torch.minimum(lower, upper), lower), torch.where(
        crossed, torch.maximum(lower, upper), upper
    )
