"""What a norm solver returns, and what its answer is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from lirpa_lip.results import Certificate, Certified


class Want(Enum):
    """Whether a solver's singular vectors are wanted, and when: most gradients that are recorded are never taken."""

    NOTHING, LATER, NOW = range(3)


@dataclass(frozen=True)
class NormResult(Certified):
    """Values of the largest singular value sigma of each operator in a batch of B.

    Attributes:
        lower, upper: ``(B,)``. ``lower`` never exceeds sigma, of an estimate but for rounding. ``upper`` is at least
            sigma if ``certificate`` is ``"deterministic"``, or with probability ``1 - failure_probability`` for each
            sample on its own if ``"probabilistic"``. If ``"estimate"``, ``upper`` equals ``lower`` and bounds nothing.
        worth: the certificate of ``upper``; also as ``certificate``, its kind, and ``failure_probability``: ``0.0``,
            delta, or ``nan`` for an estimate. It holds for each sample by itself: all B bounds hold together with
            probability at least ``1 - B * failure_probability``.
        iterations: applications of the pair (A, Aᵀ) to a sample, at most.
        left, right: ``(B, *out_shape)`` and ``(B, *in_shape)``, approximate leading singular vectors, detached;
            ``None`` where they were not asked for.
        recall: finds the vectors where they were left for later.
        seed: of the random start; given back as ``seed`` it repeats the run. ``None`` of an estimate without one.
    """

    lower: Tensor
    upper: Tensor
    worth: Certificate
    iterations: int
    left: Tensor | None = None
    right: Tensor | None = None
    seed: int | None = None
    recall: Callable[[], tuple[Tensor, Tensor]] | None = field(default=None, repr=False, compare=False)

    @property
    def certified(self) -> bool:
        """Whether ``upper`` is a bound at all."""
        return self.certificate != "estimate"

    def repeated(self, size: int) -> NormResult:
        """The result of one sample as that of ``size`` equal ones; a probabilistic bound fails for all or for none."""

        def copies(tensor: Tensor) -> Tensor:
            return tensor.repeat(size, *[1] * (tensor.ndim - 1))

        return self._each(copies)

    @property
    def has_vectors(self) -> bool:
        """Whether there are vectors, now or later."""
        return self.recall is not None or self.left is not None

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The vectors, found now if they were left for later."""
        if self.left is not None and self.right is not None:
            return self.left, self.right
        assert self.recall is not None
        return self.recall()

    def with_vectors(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> NormResult:
        """The result with its vectors changed, now or later."""
        if self.left is not None and self.right is not None:
            left, right = change(self.left, self.right)
            return replace(self, left=left, right=right)
        recall = self.recall
        return self if recall is None else replace(self, recall=lambda: change(*recall()))

    def _each(self, change: Callable[[Tensor], Tensor]) -> NormResult:
        values = replace(self, lower=change(self.lower), upper=change(self.upper))
        return values.with_vectors(lambda left, right: (change(left), change(right)))

    def to(self, dtype: torch.dtype) -> NormResult:
        """Values and vectors in another precision, rounded to nearest."""
        return self._each(lambda tensor: tensor.to(dtype))

    def select(self, index: Tensor) -> NormResult:
        """The samples at a 1-D index tensor."""
        return self._each(lambda tensor: tensor[index])


def place(size: int, values: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """Zeros of batch size ``size``, with the values of each group at its indices."""
    whole = values[0].new_zeros(size, *values[0].shape[1:])
    for value, index in zip(values, indices, strict=True):
        whole[index] = value
    return whole


def combined(parts: Sequence[NormResult], indices: Sequence[Tensor], size: int) -> NormResult:
    """Results of groups of samples as one result; a sample in no group has the norm 0.

    Args:
        parts: at least one.
        indices: positions of the samples of each part.
    """
    first = parts[0]

    def vectors() -> tuple[Tensor, Tensor]:
        lefts, rights = zip(*(part.vectors() for part in parts), strict=True)
        return place(size, lefts, indices), place(size, rights, indices)

    there = all(part.has_vectors for part in parts)
    now = there and all(part.recall is None for part in parts)
    left, right = vectors() if now else (None, None)
    return NormResult(
        place(size, [part.lower for part in parts], indices),
        place(size, [part.upper for part in parts], indices),
        first.worth,
        max(part.iterations for part in parts),
        left,
        right,
        recall=vectors if there and not now else None,
    )
