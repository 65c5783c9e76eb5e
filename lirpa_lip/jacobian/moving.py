"""Slopes that move with the input: a smooth activation's derivative between two lines in its pre-activation.

Where only a range ``[s_l, s_u]`` of the slope s = f'(z) is known, every product s·g is taken at its worst on its own.
But s follows z, and z follows the input. With g in ``[l, u]``, any λ in [0, 1] (McCormick's two planes on each side,
mixed) gives

    s g  ≤  (λ s_u + (1 − λ) s_l) g + (λ l + (1 − λ) u) s − λ l s_u − (1 − λ) u s_l,
    s g  ≥  (λ s_l + (1 − λ) s_u) g + (λ l + (1 − λ) u) s − λ l s_l − (1 − λ) u s_u,

and s lies between lines in z on its interval, so that what a tangent leaves at every activation is a linear function of
pre-activations: all of them are pulled back to the input together by the lines of the activations (CROWN), and the
region bounds the sum. At λ = u / (u − l) the part of s vanishes where g changes sign: these are the chords of
`products`.

auto_LiRPA's Jacobian bounds (0.4 on) relax the derivative in this way, with one plane; the Clarke Jacobian of Shi et
al. (NeurIPS 2022) is about slopes of ReLU, which do not move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.activations.enclosing_lines import Lines
from lirpa_lip.jacobian.forward import Forward, Interval, pull_back_planes
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import node_gamma
from lirpa_lip.regions.region import Region

#: λ (``None`` for the chord's, and 1 or 0 where the cotangent keeps its sign), and which lines of the slope. Each costs
#: a pass to the output and one back.
MIXES: tuple[tuple[float | None, int], ...] = ((None, 0), (0.5, 0), (0.0, 0), (1.0, 0), (None, 1))


@dataclass(frozen=True)
class MovingSlopes:
    """What is known of the derivatives of smooth activations over one batch of regions.

    Attributes:
        region: where the input is, one for each sample.
        lines: around each activation, ``(batch, *shape)``.
        slopes, slope_lines: range of the derivative, and lines around it, of the activations that have any.
        reach: largest absolute value of every pre-activation, ``(batch, *shape)``.
        slack: of every node, as of `forward.Forward`.
    """

    region: Region
    lines: Mapping[str, Lines]
    slopes: Mapping[str, SlopeRange]
    slope_lines: Mapping[str, tuple[Lines, ...]]
    reach: Mapping[str, Tensor]
    slack: Mapping[str, Tensor]

    def size(self, graph: NetworkGraph, name: str) -> Tensor:
        """Largest ``|slope|·|z| + |offset|`` of the lines around a derivative, ``(batch, *shape)``."""
        reach = self.reach[graph[name].parents[0]]
        sizes = []
        for line in self.slope_lines[name]:
            for slope, offset in ((line.low_slope, line.low_offset), (line.high_slope, line.high_offset)):
                sizes.append(slope.abs() * reach + offset.abs())
        return torch.stack(sizes).amax(0)

    def mixed(self, name: str, cotangent: Interval, mix: tuple[float | None, int]) -> Mixed:
        """The products of an activation for one of `MIXES`."""
        return Mixed.of(self.slopes[name], self.slope_lines[name][mix[1]], *cotangent, mix[0])


@torch.no_grad()
def moving_slopes(graph: NetworkGraph, region: Region, forward: Forward) -> MovingSlopes | None:
    """The moving slopes of a network, ``None`` where no slope moves."""
    found = {}
    for node in graph.activations:
        assert node.activation is not None
        lower, upper = forward.intervals[node.parents[0]]
        lines = node.activation.slope_lines(lower, upper, forward.slopes[node.name])
        if lines:
            found[node.name] = lines
    if not found:
        return None
    reach = {name: torch.maximum(low.abs(), high.abs()) for name, (low, high) in forward.intervals.items()}
    return MovingSlopes(region, forward.lines, forward.slopes, found, reach, forward.slack)


class Passed(NamedTuple):
    """``a·h ≤ tangent·g + left·z + constant``: ``(batch, rows, k, *shape)`` twice, and ``(batch, rows, k)``."""

    tangent: Tensor
    left: Tensor
    constant: Tensor


@dataclass(frozen=True)
class Mixed:
    """One choice of λ for the products of an activation, ``(batch, rows, *shape)``, and the lines of its slope."""

    least: Tensor
    greatest: Tensor
    lower: Tensor
    upper: Tensor
    first: Tensor
    lines: Lines

    @classmethod
    def of(cls, slopes: SlopeRange, lines: Lines, lower: Tensor, upper: Tensor, mix: float | None) -> Mixed:
        if mix is None:
            crossing = (lower < 0) & (upper > 0)
            chord = upper / torch.where(crossing, upper - lower, 1.0)
            first = torch.where(crossing, chord, (lower >= 0).to(lower.dtype))
        else:
            first = torch.full_like(lower, mix)
        return cls(slopes.low.unsqueeze(1), slopes.high.unsqueeze(1), lower, upper, first, lines)

    def upper_of(self, tangent: Tensor) -> Passed:
        """What bounds ``a·h`` for tangents a ``(batch, rows, k, *shape)``."""
        above, below, first, second = tangent.clamp(min=0), tangent.clamp(max=0), self.first, 1 - self.first
        up, down = first * self.greatest + second * self.least, first * self.least + second * self.greatest
        moved = above * up.unsqueeze(2) + below * down.unsqueeze(2)
        at_low, at_high = first * self.lower, second * self.upper
        high_offset = -(at_low * self.greatest + at_high * self.least)
        low_offset = -(at_low * self.least + at_high * self.greatest)
        constant = above * high_offset.unsqueeze(2) + below * low_offset.unsqueeze(2)
        weight = tangent * (at_low + at_high).unsqueeze(2)
        more, less = weight.clamp(min=0), weight.clamp(max=0)
        line = self.lines
        low_slope, low_offset, high_slope, high_offset = (
            t[:, None, None] for t in (line.low_slope, line.low_offset, line.high_slope, line.high_offset)
        )
        constant = constant + more * high_offset + less * low_offset
        return Passed(moved, more * high_slope + less * low_slope, constant.flatten(3).sum(-1))


def input_maximum(graph: NetworkGraph, moving: MovingSlopes, rows: Mapping[str, Tensor], lead: torch.Size) -> Tensor:
    """Upper bounds over the region of ``Σ rows_k · z_k(x)``, of rows ``(batch, rows, k, *shape)`` by pre-activation."""
    pending = {name: t.flatten(1, 2) for name, t in rows.items()}
    a, b = pull_back_planes(graph, pending, (moving.lines, moving.slack))
    # the rows themselves are sums of what several activations left
    size = sum((t.abs() * moving.reach[name].unsqueeze(1)).flatten(2).sum(-1) for name, t in pending.items())
    return (moving.region.maximum(a) + b + node_gamma(graph) * size).reshape(lead)
