"""When auto_LiRPA's own class for an operator is right: by its attributes and inputs, in both supported versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from auto_LiRPA import bound_ops

from lirpa_lip.network.emit import constant_value, depends_on_input, may_vary
from lirpa_lip.wrapping.constant_operand import meets_a_constant

Attributes = Mapping[str, Any]

Native = Callable[[Attributes, list], bool]


def never(attr: Attributes, inputs: list) -> bool:
    return False


def no_constant(attr: Attributes, inputs: list) -> bool:
    return not meets_a_constant(inputs)


def in_shape_arithmetic_or(plain: Native) -> Native:
    """Theirs for what shapes are computed with, which no bound enters, and where ``plain`` says so."""
    return lambda attr, inputs: not depends_on_input(inputs[0]) or plain(attr, inputs)


def one_position(attr: Attributes, inputs: list) -> bool:
    """Theirs loses all but one of repeated positions in CROWN, which makes its bounds invalid."""
    return constant_value(inputs[1]).ndim == 0


def step_one(attr: Attributes, inputs: list) -> bool:
    """Theirs knows no other step."""
    return len(inputs) < 5 or bool((torch.as_tensor(constant_value(inputs[4])) == 1).all())


def constant(attr: Attributes, inputs: list) -> bool:
    """Where theirs computes numbers, not bounds."""
    return not any(may_vary(bound) for bound in inputs)


def odd_power(attr: Attributes, inputs: list) -> bool:
    """Theirs knows even powers in some forms only, and, before 0.7, hardly any other; fractional ones in 0.7."""
    if constant(attr, inputs) or may_vary(inputs[1]):
        return not may_vary(inputs[1])
    exponent = torch.as_tensor(constant_value(inputs[1]))
    shaped = hasattr(bound_ops, "BoundSShaped") and issubclass(bound_ops.BoundPow, bound_ops.BoundSShaped)
    return shaped and exponent.numel() == 1 and float(exponent) > 0 and float(exponent) % 2 not in (0, 1)


def division(attr: Attributes, inputs: list) -> bool:
    """0.3 takes bounds of x / y for those of positive x and y, and both take every division by a square root for layer
    normalisation; 0.7 makes products of the others, without a clear error where the divisor is not positive."""
    if _is_root(inputs[1]) or (meets_a_constant(inputs) and not may_vary(inputs[1])):
        return False
    return constant(attr, inputs)


def _is_root(bound: Any) -> bool:
    return isinstance(bound, bound_ops.BoundSqrt)


def plain_linear(attr: Attributes, inputs: list) -> bool:
    """Theirs has invalid intervals for other factors than 1, and no CROWN for a weight that is not transposed."""
    ones = attr.get("alpha", 1.0) == 1 and (len(inputs) < 3 or attr.get("beta", 1.0) == 1)
    return ones and bool(attr.get("transB", 0)) and not attr.get("transA", 0)


def over_one_axis(attr: Attributes, inputs: list) -> bool:
    """Theirs wants the axes named, and in CROWN mistakes them where several are dropped."""
    axes = attr.get("axes")
    return axes is not None and (len(axes) == 1 or bool(attr.get("keepdims", 1))) and 0 not in axes


def constant_matrix(attr: Attributes, inputs: list) -> bool:
    """Theirs for a product of two values of the network, or with a constant matrix on the right."""
    if all(map(depends_on_input, inputs)):
        return True
    return depends_on_input(inputs[0]) and constant_value(inputs[1]).ndim == 2
