"""auto_LiRPA bounds of ``lirpa_lip::ClippedRelu``, y = min(max(z, 0), θ).

On [l, u] the function rises with slope 1 from z₀ = max(l, 0) to z₁ = min(u, θ) and is flat elsewhere (everywhere, if
u ≤ 0 or l ≥ θ). The tight lines, as tight as lines in one variable can be, are those along its convex hull on [l, u]:

* lower: through (z₀, z₀), with slope in [0, s], s = (z₁ − z₀)/(u − z₀). If l ≥ 0 only s is tight: the chord.
* upper: through (z₁, z₁), with slope in [0, t], t = (z₁ − z₀)/(z₁ − l). If u ≤ θ only t is tight: the chord.

For θ ≥ u this is the ReLU relaxation of CROWN (Zhang et al., NeurIPS 2018) with its one free lower slope; a neuron
that may clip has a free upper slope as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lirpa_lip.activations.planes import Plane, Relaxation, ratio
from lirpa_lip.nn.functional import clipped_relu, non_negative
from lirpa_lip.wrapping.relaxed_bound import RelaxedActivation


def relax_clipped_relu(
    lower: Tensor, upper: Tensor, theta: Tensor, lower_mix: Tensor | None = None, upper_mix: Tensor | None = None
) -> Relaxation:
    """Lines below and above min(max(z, 0), θ) on [lower, upper].

    Args:
        lower, upper: the interval, (batch, *shape); theta ≥ 0 broadcasts against them.
        lower_mix, upper_mix: where in [0, s] and [0, t] the free slopes lie, as fractions in [0, 1]; by default at the
            end that leaves the smaller area between line and function (:func:`default_mixes`).
    """
    if lower_mix is None or upper_mix is None:
        lower_mix, upper_mix = default_mixes(lower, upper, theta)
    start, end = lower.clamp(min=0), torch.minimum(upper, theta)
    lower_slope = ratio(end - start, upper - start, at_zero=1.0) * torch.where(lower < 0, lower_mix, 1.0)
    chord = ratio(end - start, end - lower, at_zero=1.0)
    upper_slope = chord * torch.where(upper > theta, upper_mix, 1.0)
    # Where u ≤ θ the chord also passes through (l, z₀), and loses less to rounding if written from there.
    from_left = (upper <= theta) & torch.isfinite(lower)
    upper_bias = torch.where(
        from_left, start - upper_slope * torch.where(from_left, lower, 0.0), end * (1 - upper_slope)
    )

    flat = (upper <= 0) | (lower >= theta)
    level = torch.where(upper <= 0, torch.zeros_like(theta), theta)
    return Relaxation(
        Plane((torch.where(flat, 0.0, lower_slope),), torch.where(flat, level, start * (1 - lower_slope))),
        Plane((torch.where(flat, 0.0, upper_slope),), torch.where(flat, level, upper_bias)),
    )


def default_mixes(lower: Tensor, upper: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of the two slope ranges that minimise the area: the area is linear in the slope."""
    end = torch.minimum(upper, theta)
    return (upper > -lower).to(lower.dtype), (end - lower > upper - end).to(lower.dtype)


class BoundClippedRelu(RelaxedActivation):
    """Clipped ReLU with learnable thresholds; inputs: the pre-activation and the raw threshold."""

    mixes_per_output = 2

    def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.ibp_intermediate = True  # as for ReLU: nothing is tighter than the image of its input's interval

    def effective(self, *raw: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(non_negative, raw))

    def forward(self, z: Tensor, raw: Tensor) -> Tensor:
        return clipped_relu(z, raw)

    def default_mix(self, lower: Tensor, upper: Tensor, *thresholds: Tensor) -> list[Tensor]:
        return list(default_mixes(lower, upper, *thresholds))

    def relax(self, lower: Tensor, upper: Tensor, mix: list[Tensor], *thresholds: Tensor) -> list[Relaxation]:
        return [relax_clipped_relu(lower, upper, *thresholds, *mix)]
