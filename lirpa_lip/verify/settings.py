"""What decides how an instance is verified."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lirpa_lip.config import CERTIFICATES, LocalLipConfig
from lirpa_lip.errors import CertificateError, ConfigError, UnknownMethodError
from lirpa_lip.ranges import NOT_NEGATIVE, SEED, check_delta

#: Stages that take norms, among which an instance's δ is divided: two bounds, and branching.
STAGES_WITH_NORMS = 3


@dataclass(frozen=True)
class VerifySettings:
    """
    Attributes:
        time_limit: seconds for each instance; no stage is begun after it, and those of our own that have begun end
            at their next step with what they have. Infinite for none: branching is then left out.
        restarts, pgd_steps: of the thorough attack; a quick one comes first.
        certificate, delta: what norms must be worth, and the failure probability of all that is said of one instance.
        inference: arithmetic the network is run in, see `LocalLipConfig`; None for real arithmetic.
        optimize: steps of descent of ``sdp-crown`` and α-CROWN.
        branch: whether what is left open is branched on.
        seed: of the attack's random starts.

    Raises:
        ConfigError, CertificateError, UnknownMethodError: a value that a setting cannot have.
    """

    time_limit: float = 60.0
    restarts: int = 10
    pgd_steps: int = 100
    certificate: Literal["auto", "deterministic", "probabilistic"] = "auto"
    delta: float = 1e-6
    inference: Literal["float32", "bfloat16"] | None = None
    optimize: int = 30
    branch: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.certificate == "estimate":
            raise CertificateError("an estimate verifies nothing: choose auto, deterministic or probabilistic.")
        if self.certificate not in CERTIFICATES:
            raise UnknownMethodError(self.certificate, CERTIFICATES[:3], kind="certificate")
        check_delta(self.delta)
        if math.isnan(self.time_limit) or self.time_limit < 0:
            raise ConfigError(f"time_limit={self.time_limit} must be a number of seconds, at least 0.")
        for name in ("restarts", "pgd_steps", "optimize"):
            NOT_NEGATIVE.check(name, getattr(self, name))
        SEED.check("seed", self.seed)

    def local(self, optimize: int = 0, regions: int = 1) -> LocalLipConfig:
        """Of the bounds of one stage, over one of the instance's regions."""
        return LocalLipConfig(
            certificate=self.certificate,
            delta=self.delta / (STAGES_WITH_NORMS * regions),
            inference=self.inference,
            optimize=optimize,
            norm_tolerance=1e-3,
        )
