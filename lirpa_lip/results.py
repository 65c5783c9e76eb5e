"""What `local_lipschitz` returns, and what a number is worth: the certificate that travels with every result."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

Kind = Literal["deterministic", "probabilistic", "estimate"]
#: From the strongest to the weakest.
KINDS: tuple[Kind, ...] = ("deterministic", "probabilistic", "estimate")


class Certificate(NamedTuple):
    """What is claimed of a bound.

    Attributes:
        kind: ``"deterministic"``; ``"probabilistic"``: holds with probability ``1 − delta`` for each sample, over the
            solver's own random start; ``"estimate"``: bounds nothing.
        delta: ``0.0``, the failure probability, or ``nan``.
    """

    kind: Kind = "deterministic"
    delta: float = 0.0

    @classmethod
    def of(cls, kind: Kind, delta: float) -> Certificate:
        """A certificate of a kind, where ``delta`` is the chance it would have if it were probabilistic."""
        return cls(kind, {"deterministic": 0.0, "probabilistic": delta, "estimate": math.nan}[kind])

    def both(self, other: Certificate) -> Certificate:
        """Of two claims that must hold together: the weaker kind; chances of failure add up (union bound)."""
        return Certificate(weaker(self.kind, other.kind), self.delta + other.delta)


DETERMINISTIC = Certificate()
ESTIMATE = Certificate("estimate", math.nan)


def weaker(*kinds: Kind) -> Kind:
    """The weakest of at least one kind."""
    return max(kinds, key=KINDS.index)


def weakest(certificates: Iterable[Certificate]) -> Certificate:
    """Of claims that stand each on its own, of different samples: the weakest kind, and the largest δ among them.

    Raises:
        ValueError: there is none.

    Example:
        >>> weakest([Certificate(), Certificate("probabilistic", 1e-6)])
        Certificate(kind='probabilistic', delta=1e-06)
    """
    found = list(certificates)
    kind = weaker(*(certificate.kind for certificate in found))
    return Certificate.of(kind, max((c.delta for c in found if not math.isnan(c.delta)), default=math.nan))


class Certified:
    """A result with a certificate, its `worth`."""

    worth: Certificate

    @property
    def certificate(self) -> Kind:
        """The kind: ``"deterministic"``, ``"probabilistic"`` or ``"estimate"``."""
        return self.worth.kind

    @property
    def failure_probability(self) -> float:
        """``0.0``, δ per sample, or ``nan`` for an estimate."""
        return self.worth.delta


@dataclass(frozen=True)
class LipschitzResult(Certified):
    """A local Lipschitz constant over a region, from above and from below.

    Attributes:
        upper: ``(batch, specs)``, or ``(batch,)`` for the whole network: at least the constant, as certified.
        lower: same shape: the largest rate of change found at points of the region; never above the constant.
        worth: the certificate of ``upper``; also as ``certificate``, its kind, and ``failure_probability``.
        details: of ``"local-lip"`` ``"seed"``, which repeats the run, ``LocalLipConfig(seed=...)``, and ``"layers"``:
            of every activation ``{"stable", "open", "eliminated"}``, numbers ``(batch,)`` that add up to all of it.
        stable, eliminated, neurons: neurons that are linear, of these constant, and all, per sample ``(batch,)``.
    """

    upper: Tensor
    lower: Tensor
    worth: Certificate
    stable: Tensor | None = None
    eliminated: Tensor | None = None
    neurons: int = 0
    details: dict = field(default_factory=dict)
