"""Linear bounds of the activations over a box: where each may lie, and which of them is chosen.

Every output is bounded below and above by one affine function of its inputs. Where more than one is tight they form a
segment, and a *mix* in [0, 1] per neuron picks a point of it. Every mix is sound, so mixes can be optimised freely.
All slopes are ≥ 0, as the activations are non-decreasing in each of their inputs. Nothing here knows auto_LiRPA.

Intervals may be points, and may be infinite: a bound is then the tightest finite one, or ±inf, and never NaN. The lines
meet the function at its corners; rounding apart (a few ulp of the largest number involved) they are exact bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Plane(NamedTuple):
    """Σ_k slopes[k] · input_k + bias, elementwise."""

    slopes: tuple[Tensor, ...]
    bias: Tensor


class Relaxation(NamedTuple):
    """lower(inputs) ≤ activation(inputs) ≤ upper(inputs) on the box it was made for."""

    lower: Plane
    upper: Plane


class Relaxations(NamedTuple):
    """Of those there are, the relaxation that is tightest at the lower end, in the middle, at the upper end."""

    lower_end: Relaxation
    middle: Relaxation
    upper_end: Relaxation


def ratio(rise: Tensor, run: Tensor, at_zero: float) -> Tensor:
    """rise / run, and ``at_zero`` where run = 0, with finite derivatives in both cases."""
    positive = run > 0
    return torch.where(positive, rise / torch.where(positive, run, 1.0), at_zero)


def blend(first: Plane, second: Plane, mix: Tensor) -> Plane:
    """(1 − mix) · first + mix · second."""
    slopes = tuple(torch.lerp(a, b, mix) for a, b in zip(first.slopes, second.slopes, strict=True))
    return Plane(slopes, first.bias + mix * (second.bias - first.bias))


def where(condition: Tensor, first: Plane, second: Plane) -> Plane:
    """``first`` where the condition holds, else ``second``."""
    slopes = tuple(torch.where(condition, a, b) for a, b in zip(first.slopes, second.slopes, strict=True))
    return Plane(slopes, torch.where(condition, first.bias, second.bias))


def mirror(relaxation: Relaxation) -> Relaxation:
    """The relaxation of x ↦ −f(−x) from that of f on the mirrored box: sides change places, biases change sign."""
    lower, upper = relaxation
    return Relaxation(Plane(upper.slopes, -upper.bias), Plane(lower.slopes, -lower.bias))
