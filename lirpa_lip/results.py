"""What `local_lipschitz` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class LipschitzResult:
    """A local Lipschitz constant over a region, from above and from below.

    Attributes:
        upper: ``(batch, specs)``, or ``(batch,)`` for the whole network: at least the constant, as certified.
        lower: same shape: the largest rate of change found at points of the region; never above the constant.
        certificate: ``"deterministic"``; ``"probabilistic"``: holds with probability ``1 − failure_probability``
            per sample over the solver's own random start; ``"estimate"``: bounds nothing.
        failure_probability: ``0.0``, ``delta`` or ``nan``.
        details: of ``"local-lip"`` ``"seed"``, which repeats the run: ``LocalLipConfig(seed=...)``.
        stable, eliminated, neurons: neurons that are linear, of these constant, and all, per sample ``(batch,)``.
    """

    upper: Tensor
    lower: Tensor
    certificate: Literal["deterministic", "probabilistic", "estimate"]
    failure_probability: float
    stable: Tensor | None = None
    eliminated: Tensor | None = None
    neurons: int = 0
    details: dict = field(default_factory=dict)
