"""Knots, slopes and values that may be numbers or tensors, brought to one shape and precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from lirpa_lip.activations.base import Number


def full(value: Number, like: Tensor) -> Tensor:
    """A number or tensor in the shape and type of ``like``; what exceeds the type is its largest number."""
    info = torch.finfo(like.dtype)
    if not isinstance(value, Tensor):
        value = min(max(value, info.min), info.max)
    else:
        value = (value if value.dtype == like.dtype else value.double()).clamp(info.min, info.max)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)


def intercepts(knots: Sequence, slopes: Sequence, at_first_knot: Number) -> list:
    """``c_0 = f(k_0) − s_0 k_0`` and ``c_{i+1} = c_i + (s_i − s_{i+1}) k_i``."""
    parts = (*knots, *slopes, at_first_knot)
    exact = not any(isinstance(t, Tensor) for t in parts)
    if exact:
        largest = Fraction(torch.finfo(torch.float64).max)
        bounded = [max(min(Fraction(t), largest), -largest) if math.isfinite(t) else largest * (1 if t > 0 else -1)
                   for t in parts]  # fmt: skip
        knots, slopes, at_first_knot = bounded[: len(knots)], bounded[len(knots) : -1], bounded[-1]
    else:
        knots, at_first_knot = [_finite(k) for k in knots], _finite(at_first_knot)
    found = [at_first_knot - slopes[0] * knots[0]]
    for knot, left, right in zip(knots, slopes, slopes[1:]):
        found.append(found[-1] + (left - right) * knot)
    return [float(c) for c in found] if exact else found


def _finite(value: Number):
    info = torch.finfo(value.dtype if isinstance(value, Tensor) and value.dtype.is_floating_point else torch.float64)
    return value.clamp(info.min, info.max) if isinstance(value, Tensor) else min(max(value, info.min), info.max)


def is_zero(slope: Number) -> bool:
    return not isinstance(slope, Tensor) and slope == 0
