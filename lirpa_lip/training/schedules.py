"""Ramps of ε and κ, and the learning rate, as functions of the (fractional) epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lirpa_lip.errors import ConfigError, UnknownMethodError

DECAYS = ("exponential", "cosine")


@dataclass(frozen=True)
class LinearRamp:
    """``start`` until ``warmup``, then linear, ``end`` from ``warmup + length`` on (times in epochs)."""

    start: float
    end: float
    warmup: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.length < 0:
            raise ConfigError(f"a ramp needs warmup >= 0 and length >= 0; got {self.warmup} and {self.length}.")

    def __call__(self, epoch: float) -> float:
        if epoch < self.warmup:
            return self.start
        if epoch >= self.warmup + self.length:
            return self.end
        return self.start + (self.end - self.start) * (epoch - self.warmup) / self.length


@dataclass(frozen=True)
class HoldThenDecay:
    """``start`` for the first ``hold`` epochs, then a decay that reaches ``end`` at ``epochs``.

    With p the part of the time after ``hold`` that has passed, the rate is start · (end / start)^p (``"exponential"``)
    or end + (start − end) · (1 + cos πp) / 2 (``"cosine"``; Loshchilov & Hutter, ICLR 2017, arXiv 1608.03983).
    The published schedule holds for half the epochs + 25 and is exponential (Huang et al. 2021, published code).
    During the first ``rise`` epochs all that is multiplied by epoch / rise.
    """

    start: float
    end: float
    hold: float
    epochs: float
    decay: str = "exponential"
    rise: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise UnknownMethodError(self.decay, DECAYS, kind="decay")
        if self.start <= 0 or self.end <= 0 or not 0 <= self.hold <= self.epochs or self.rise < 0:
            raise ConfigError(
                "the learning rate needs start > 0, end > 0, rise >= 0 and 0 <= hold <= epochs; "
                f"got {self.start}, {self.end}, {self.rise}, {self.hold} of {self.epochs}."
            )

    def __call__(self, epoch: float) -> float:
        share = epoch / self.rise if epoch < self.rise else 1.0
        return share * self._after_rise(epoch)

    def _after_rise(self, epoch: float) -> float:
        if epoch <= self.hold:
            return self.start
        progress = min(1.0, (epoch - self.hold) / (self.epochs - self.hold)) if self.epochs > self.hold else 1.0
        if self.decay == "cosine":
            return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * progress)) / 2.0
        return float(self.start * (self.end / self.start) ** progress)
