"""What `lirpa_lip.verify` says of one instance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Status = Literal["certified", "refuted", "open"]
Word = Literal["unsat", "sat", "unknown", "timeout"]


@dataclass(frozen=True)
class Verdict:
    """Of one instance.

    Attributes:
        status: ``"certified"``: the property holds on the whole region. ``"refuted"``: the network itself, as it was
            given, violates it at `counterexample`, a point of the region. ``"open"``: neither was found.
        word: the same as VNN-COMP says it, of the property's violation: ``unsat``, ``sat``, ``unknown``, or ``timeout``
            for an open one whose time was used up.
        lower: lower bound of the least margin over the region (positive: certified), valid whenever it was stopped.
            With a case of several rows, of the largest of their margins.
        upper: the least margin that was seen at a point of the region; infinite where none was looked at.
        counterexample, output: a violating input ``(1, *shape)`` and what the network itself gives there; or None.
        certificate: ``"deterministic"``, or ``"probabilistic"``: then what is said holds with probability of at least
            ``1 − delta`` over the solver's own random starts.
        delta: failure probability; 0.0 for deterministic ones and for refutations.
        decided_by: the stage that did; empty for open ones.
        seconds: of each stage.
        prediction, label: classes at the centre, and the class to be kept, for label robustness.
    """

    status: Status
    word: Word
    lower: float
    upper: float
    counterexample: Tensor | None = None
    output: Tensor | None = None
    certificate: str = "deterministic"
    delta: float = 0.0
    decided_by: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    prediction: int | None = None
    label: int | None = None

    @property
    def gap(self) -> float:
        """How far apart the least margin is known to lie: ``upper − lower``, at least 0."""
        return max(0.0, self.upper - self.lower)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())
