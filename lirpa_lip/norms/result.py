"""What a norm solver returns, and what its answer is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Certificate = Literal["deterministic", "probabilistic", "estimate"]


@dataclass(frozen=True)
class NormResult:
    """Values of the largest singular value sigma of each operator in a batch of B.

    Attributes:
        lower, upper: ``(B,)``. ``lower`` never exceeds sigma but for rounding to nearest. ``upper`` is at least sigma if
            ``certificate`` is ``"deterministic"``, or with probability ``1 - failure_probability`` for each sample on
            its own if ``"probabilistic"``. If ``"estimate"``, ``upper`` equals ``lower`` and bounds nothing.
        certificate: the kind of answer, the weakest over the batch.
        failure_probability: ``0.0``, delta, or ``nan`` for an estimate. It holds for each sample by itself: all B
            bounds hold together with probability at least ``1 - B * failure_probability``.
        iterations: applications of the pair (A, Aᵀ) to the whole batch, at most.
        left, right: ``(B, *out_shape)`` and ``(B, *in_shape)``, approximate leading singular vectors, detached; ``None``
            where a method has none.
    """

    lower: Tensor
    upper: Tensor
    certificate: Certificate
    failure_probability: float
    iterations: int
    left: Tensor | None = None
    right: Tensor | None = None

    @property
    def certified(self) -> bool:
        """Whether ``upper`` is a bound at all."""
        return not math.isnan(self.failure_probability)
