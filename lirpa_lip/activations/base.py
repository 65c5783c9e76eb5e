"""What the bounds need to know of one activation: its values, its slopes and its deviation from a line.

Everything non-linear in a network reaches the bounds as an *elementwise* function: MaxMin and max pooling are
rewritten by the graph as a linear map, an absolute value and a linear map (``docs/architecture.md``). One record per
function is therefore enough, and no bound tests for an operator's name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.activations.enclosing_lines import Lines, best_lines, deviation_by_cells
from lirpa_lip.activations.slopes import SlopeRange

#: One for all neurons, or a tensor that broadcasts to ``(batch, *shape)``.
Number = float | Tensor


@dataclass(frozen=True)
class Piece:
    """The line ``slope · t + offset`` for ``t = z − anchor`` in ``[low, high]`` (empty where ``low > high``).

    A list of pieces encloses a function g if, for every t and every number c, ``c g(t)`` is at most the largest
    ``c (slope t + offset)`` over the pieces that t lies in. A maximum of ``c g`` plus anything is then found
    piece by piece.
    """

    slope: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class ConstantPart:
    """Where some channels of an activation are constant: as far as it lies ``below``, or ``above``, a threshold.

    Thresholds are numbers or tensors that broadcast to these channels, ``(batch, *shape)``; ``None`` for nowhere.
    """

    channels: slice
    below: Tensor | float | None = None
    above: Tensor | float | None = None


class Activation(ABC):
    """An elementwise function ``f`` with enough knowledge of its shape for sound bounds.

    Tensors are ``(batch, *shape)``; ``lower`` and ``upper`` are pre-activation bounds with ``lower <= upper``.

    Attributes:
        value_slack: how far PyTorch's own function departs from ``f``, beyond rounding.
        steep: on no interval is the largest absolute slope anything but 1, nor that of secants from a point of it, so
            that nobody need look (an absolute value).
        piecewise_linear: values are products and sums, and so are their rounding errors.
        least: no value lies below it, as computed either: a square is not negative.
        is_root: f(0) = 0, f is concave on z ≥ 0, and a small relative error of z moves f(z) by no larger a relative
            one: errors e move f(z) by f(|e|) at most, however steep f is there.
    """

    value_slack: float = 0.0
    steep: bool = False
    piecewise_linear: bool = False
    least: float = -math.inf
    is_root: bool = False

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """``f(z)``."""

    @abstractmethod
    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Range of ``f`` on ``[lower, upper]``."""

    @abstractmethod
    def slope_range(self, lower: Tensor, upper: Tensor, closed: bool = False) -> SlopeRange:
        """Range of ``(f(a) - f(b)) / (a - b)`` for ``a != b`` in ``[lower, upper]``.

        ``closed=True`` gives the range of the Clarke derivative on the closed interval instead, which at a kink that
        is an end point includes the slope of the other side.
        """

    def secant_range(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> SlopeRange:
        """Range of ``(f(z) - f(anchor)) / (z - anchor)`` for ``z`` in ``[lower, upper]``; never wider than the slopes.

        By the mean value theorem the slope range is always valid; subclasses do better where they can.
        """
        return self.slope_range(lower, upper)

    def steepest_secant(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """The largest absolute value of these slopes, to rounding: for estimates, in fewer operations."""
        return self.secant_range(anchor, lower, upper).magnitude

    def clarke_range(self, lower: Tensor, upper: Tensor, after: Tensor, before: Tensor) -> SlopeRange:
        """Range of Clarke slopes on the closed ``[lower, upper]``, itself inside ``[after, before]``.

        A *split* restricts a pre-activation to a closed half line that ends at a split point. On the half line of a
        kink at t the slope is that of its own side alone: a point with z = t lies in both halves, so that the two
        children together hold the whole Clarke set there, and neither needs both slopes. The ends of *computed*
        intervals are different: nothing is on the other side of them, so at a kink which is such an end both slopes
        count.

        Args:
            lower, upper: bounds of the pre-activation.
            after, before: split points, ``∓inf`` where there is no split.
        """
        return self.slope_range(lower, upper, closed=True)

    def split_point(self, lower: Tensor, upper: Tensor, after: Tensor, before: Tensor) -> Tensor:
        """Where to split each neuron, between the split points it has already; NaN for nowhere."""
        return torch.where(upper > lower, (lower + upper) / 2, torch.nan)

    def lines(self, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> Lines:
        """A line below and a line above ``f`` on ``[lower, upper]``, for slopes of `clarke_range`."""
        return best_lines(self, lower, upper, slopes)

    def slope_lines(self, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> tuple[Lines, ...]:
        """Lines below and above the derivative on ``[lower, upper]``, of range ``slopes``: of few slopes, and with the
        tangent in the middle; none where nothing better than the range is known."""
        return ()

    def line_deviation(
        self, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange
    ) -> tuple[Tensor, Tensor]:
        """`deviation_range` for `lines`, of one step rather than many: as tight as values at a few points make it."""
        return deviation_by_cells(self, slope, anchor, lower, upper)

    def slope_at(self, z: Tensor) -> SlopeRange:
        """The slope at points, a range where it is ambiguous: at a kink, and next to one as far as rounding matters."""
        slopes = self.slope_range(z, z, closed=True)
        doubtful = slopes.radius > 1e-6 * (1 + slopes.magnitude)
        centre = slopes.centre
        return SlopeRange(torch.where(doubtful, slopes.low, centre), torch.where(doubtful, slopes.high, centre))

    def smoothed_slope(self, z: Tensor, scale: Tensor) -> Tensor:
        """The slope with every kink replaced by a sigmoid of a scale, which has a derivative in ``z``; no bound."""
        return self.slope_range(z, z).centre

    def deviation_range(
        self, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange
    ) -> tuple[Tensor, Tensor]:
        """Range of ``f(z) - f(anchor) - slope * (z - anchor)`` for ``z`` in ``[lower, upper]``.

        ``slopes`` must hold every secant slope from ``anchor``. The default bounds each side of the anchor by the
        extreme slopes, which is exact only for straight lines.
        """
        right, left = (upper - anchor).clamp(min=0), (anchor - lower).clamp(min=0)
        above, below = slopes.high - slope, slopes.low - slope
        high = torch.maximum(above.clamp(min=0) * right, (-below).clamp(min=0) * left)
        low = torch.minimum(below.clamp(max=0) * right, -above.clamp(min=0) * left)
        return low, high

    def pieces(self, anchor: Tensor, lower: Tensor, upper: Tensor, slopes: SlopeRange) -> list[Piece]:
        """Lines that enclose ``f(z) − f(anchor)`` on ``[lower, upper]``, as `Piece` says.

        ``slopes`` must hold every secant slope from ``anchor``; the default encloses ``f`` by the two extreme ones.
        """
        zero = torch.zeros_like(anchor)
        low, high = lower - anchor, upper - anchor
        return [Piece(slopes.low, zero, low, high), Piece(slopes.high, zero, low, high)]

    def outside(self, lower: Tensor, upper: Tensor) -> str:
        """Why there is no bound on ``[lower, upper]`` (a pole, inputs it is not defined for); empty where there is."""
        return ""

    def constant_parts(self) -> tuple[ConstantPart, ...]:
        """Where ``f`` is constant, for channels that are so somewhere."""
        return ()

    def parameters(self) -> tuple[Tensor, ...]:
        """Tensors (thresholds, learnable slopes) through which bounds are differentiable."""
        return ()


@dataclass(frozen=True)
class SortedInput:
    """Where the input of a clipped pairwise sort is found, and how a mask of its outputs maps back to it.

    Attributes:
        source: name of the affine or activation node that is sorted.
        fold: name of the fold (the absolute value of the differences) inside the sort.
        pull_back: ``(fold's slope centre, fold's stable mask, mask of the outputs) -> mask of the sort's input``.
    """

    source: str
    fold: str
    pull_back: Callable[[Tensor, Tensor, Tensor], Tensor]
