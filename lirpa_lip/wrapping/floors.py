"""What a value never falls below, by the operators that make it: squares, means of such, and what is added to them.

Linear bounds know nothing of it: of a variance they may say that it is negative. Roots, logarithms and quotients are
bounded from there on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.network.emit import constant_value, may_vary

_NONNEGATIVE = {f"Bound{n}" for n in "Sqr Abs Exp Relu Sigmoid HardSigmoid Softmax Softplus ReduceL2".split()}
_KEEPS = {f"Bound{n}" for n in """Reshape Flatten Squeeze Unsqueeze Transpose Slice Expand Gather Split Identity Dropout
ReduceMean ReduceMax ReduceMin MaxPool GlobalAveragePool""".split()}  # fmt: skip
#: Sums of a few values that are rounded may lie this much (relatively) below the sum of their floors.
_ROUNDED = 1e-6


def floor(bound: Any) -> float:
    """The number; ``-inf`` where the operators tell none."""
    if not may_vary(bound):
        return _least(bound)
    kind, inputs = type(bound).__name__, bound.inputs
    if kind in _NONNEGATIVE:
        return 0.0
    if kind == "BoundSqrt":
        return _below(max(floor(inputs[0]), 0.0) ** 0.5)
    if kind == "BoundPow":
        return 0.0 if not may_vary(inputs[1]) and _even(inputs[1]) else -math.inf
    if kind == "BoundMul":
        return 0.0 if inputs[0] is inputs[1] else _product(floor(inputs[0]), floor(inputs[1]))
    if kind == "BoundAdd":
        return _below(sum(map(floor, inputs)))
    if kind == "BoundDiv":
        return 0.0 if floor(inputs[0]) >= 0 and floor(inputs[1]) > 0 else -math.inf
    if kind == "BoundReduceSum":
        return 0.0 if floor(inputs[0]) >= 0 else -math.inf
    if kind == "BoundAveragePool":  # the zeros of its padding are averaged, too
        return min(floor(inputs[0]), 0.0)
    return floor(inputs[0]) if kind in _KEEPS else -math.inf


def raised(bound: Any, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of a value's, with the lower one no less than its floor."""
    least = floor(bound)
    if least == -math.inf:
        return lower, upper
    lower = lower.clamp(min=least)
    return lower, torch.maximum(lower, upper)


def _least(bound: Any) -> float:
    value = constant_value(bound)
    return float(value.min()) if isinstance(value, Tensor) and value.numel() else -math.inf


def _even(bound: Any) -> bool:
    exponent = torch.as_tensor(constant_value(bound))
    return exponent.numel() == 1 and float(exponent) % 2 == 0 and float(exponent) > 0


def _product(first: float, second: float) -> float:
    """Of two values, both known not to be negative."""
    return max(_below(first * second), 0.0) if min(first, second) >= 0 else -math.inf


def _below(value: float) -> float:
    return value - _ROUNDED * abs(value)
