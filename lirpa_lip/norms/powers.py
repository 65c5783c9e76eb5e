"""Powers of two: factors that no rounding comes of, while nothing leaves the range of float64."""

from __future__ import annotations

import torch
from torch import Tensor

#: Exponents of one factor, so that it and its reciprocal are normal numbers.
_STEP = 1000


def exponents(values: Tensor) -> Tensor:
    """``e`` with ``2^(e-1) <= |x| < 2^e``, int64; 0 where x is 0."""
    return torch.frexp(values.detach()).exponent.long()


def power_of_two(exponent: Tensor) -> Tensor:
    """``2^k`` in float64, exactly, for ``-1022 <= k <= 1023``: the bits, as no exponential is exact on all machines."""
    return ((exponent + 1023) << 52).view(torch.float64)


def times_power(tensor: Tensor, exponent: Tensor) -> Tensor:
    """``x 2^k`` of a float64 tensor, differentiable; exact but for what becomes denormal or overflows.

    Args:
        exponent: int64, ``()``, or ``(B,)`` for a tensor with a batch axis.
    """
    left = exponent.reshape(exponent.shape + (1,) * (tensor.ndim - exponent.ndim) if exponent.ndim else ())
    while bool((left != 0).any()):
        step = left.clamp(-_STEP, _STEP)
        tensor, left = tensor * power_of_two(step), left - step
    return tensor


def outward(value: Tensor, exponent: Tensor | None, dtype: torch.dtype, up: bool) -> Tensor:
    """``value 2^k`` in another precision, not below it if ``up``, else not above it, by at least one rounding.

    The rounding counts the last operation behind the value; 0 stays 0. What is too large is infinite from above, and
    the largest number from below.
    """
    goal = torch.inf if up else -torch.inf
    value = torch.where(value == 0, value, torch.nextafter(value, torch.full_like(value, goal))).double()
    whole = value
    if exponent is not None:
        whole = times_power(value, exponent)
        whole = _corrected(whole, times_power(whole, -exponent), value, goal)
    near = whole.to(dtype)
    return _corrected(near, near.double(), whole, goal)


def _corrected(near: Tensor, seen: Tensor, exact: Tensor, goal: float) -> Tensor:
    wrong = seen < exact if goal > 0 else seen > exact
    return torch.where(wrong, torch.nextafter(near, torch.full_like(near, goal)), near)
