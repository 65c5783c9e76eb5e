"""What an interval must not do to an activation: leave its domain, or make its slope infinite."""

from __future__ import annotations

import torch

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.errors import DomainError, NonFiniteError
from lirpa_lip.network.node import Interval, Node


def check_domain(node: Node, interval: Interval) -> None:
    """Raises `DomainError` where an activation is not defined on the whole interval of its input."""
    reason = "" if node.activation is None else node.activation.outside(*interval)
    if reason:
        raise DomainError(node.name, node.operator, reason)


def check_slopes(node: Node, slopes: SlopeRange) -> None:
    if not bool(torch.isfinite(slopes.magnitude).all()):
        where = f"a slope of {node.operator} at node {node.name!r}"
        advice = "the network's slopes overflow in this region: make eps smaller"
        if node.activation is not None and node.activation.is_root:
            advice = "a root is infinitely steep at 0, which this region holds: make eps smaller, or add a constant to "
            advice += "what the model takes the root of"
        raise NonFiniteError(where, advice)
