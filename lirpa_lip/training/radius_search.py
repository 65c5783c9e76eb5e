"""The largest radius at which a sample can be verified, in few verdicts: chords of the margin in place of bisection.

The least margin's lower bound m(ε) falls from m(0), the margin at the sample, and for bounds whose Lipschitz constant
grows with the ball it is concave. The chord from a radius where m > 0 to one where m <= 0 then crosses zero at or
before m does: a guess that will be verified, and mostly one that is near.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Least step into a bracket, as a share of it; how far short of a chord's zero a guess stays, as a share of the way:
#: where m is all but linear, zero itself is no margin. Growth of a radius that has not failed: usual, at most.
_SHARE, _SHORT, _GROWTH, _MOST = 0.05, 0.01, 1.5, 20.0
#: First radius tried where nothing but the sample itself is known.
_FIRST = 0.1


class Brackets:
    """Per sample the largest verified radius, the smallest that failed, and the margins' bounds there.

    Args:
        margin: (batch,) float64, the least margin at the sample.
        exact_when_safe: whether a positive bound is the method's best, so that it tells of the slope.
    """

    def __init__(self, margin: Tensor, exact_when_safe: bool = True) -> None:
        self.margin, self.exact = margin, exact_when_safe
        self.safe = torch.full_like(margin, -torch.inf)
        self.failed = torch.full_like(margin, torch.inf)
        self._near, self._value_near = torch.zeros_like(margin), margin.clone()
        self._value_failed = torch.full_like(margin, -torch.inf)

    def raise_to(self, radius: Tensor) -> None:
        """Radii that are known to be safe from elsewhere."""
        self.safe = torch.maximum(self.safe, radius)

    def note(self, index: Tensor, eps: Tensor, value: Tensor) -> None:
        """The outcome of a verdict: samples ``index`` at radii ``eps`` have margins of at least ``value``."""
        value, good = value.double(), value > 0
        self.safe[index] = torch.where(good, torch.maximum(self.safe[index], eps), self.safe[index])
        nearer = good & (eps > self._near[index])
        if self.exact:
            self._near[index] = torch.where(nearer, eps, self._near[index])
            self._value_near[index] = torch.where(nearer, value, self._value_near[index])
        worse = ~good & (eps < self.failed[index])
        self.failed[index] = torch.where(worse, eps, self.failed[index])
        self._value_failed[index] = torch.where(worse, value, self._value_failed[index])

    def guess(self) -> Tensor:
        """The radius to try next, strictly between ``safe`` and ``failed``."""
        low = self.safe.clamp(min=0)
        return torch.where(self.failed.isinf(), self._beyond(low), self._between(low))

    def _between(self, low: Tensor) -> Tensor:
        width = self.failed - low
        drop = self._value_near - self._value_failed
        root = self._near + (1 - _SHORT) * (self.failed - self._near) * self._value_near / drop
        inside = root.isfinite() & (drop > 0) & self._value_failed.isfinite() & (root > low)
        root = torch.where(inside, root, low + width / 2)
        return torch.minimum(torch.maximum(root, low + _SHARE * width), low + (1 - _SHARE) * width)

    def _beyond(self, low: Tensor) -> Tensor:
        slope = (self.margin - self._value_near) / self._near
        root = self._near + (1 - _SHORT) * self._value_near / slope
        usable = root.isfinite() & (root > low)
        grown = torch.where(usable, torch.minimum(root, _MOST * low), _GROWTH * low)
        return torch.where(low > 0, grown, _FIRST)
