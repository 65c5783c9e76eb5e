"""What a number may be, written once: configuration files, flags and their help are all checked and worded from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lirpa_lip.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """A finite number between two ends, of which either may be open.

    Attributes:
        low, high: ends; infinite for none. Infinity itself and NaN lie in no range.
        open_low, open_high: whether the end itself is excluded.
        meaning: what the number is, for the message.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    meaning: str = ""

    def holds(self, value: float) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def check(self, name: str, value: float) -> None:
        """
        Raises:
            ConfigError: the number lies outside; the message names it and says what it may be.
        """
        if not self.holds(value):
            raise ConfigError(f"{name} {self.demand}; got {value}.")

    @property
    def demand(self) -> str:
        """As in "lr must be positive and finite"."""
        meaning = f": it is {self.meaning}" if self.meaning else ""
        if math.isfinite(self.low) and math.isfinite(self.high):
            ends = "strictly between" if self.open_low and self.open_high else "between"
            left = f", {self.low:g} excluded" if self.open_low and not self.open_high else ""
            return f"must lie {ends} {self.low:g} and {self.high:g}{left}{meaning}"
        if math.isfinite(self.low):
            least = "positive and finite" if self.open_low else f"at least {self.low:g}, and finite"
            least = "finite and not be negative" if not self.open_low and self.low == 0 else least
            return f"must be {least}{meaning}"
        return f"must be finite{meaning}"

    @property
    def shown(self) -> str:
        """For help texts: ``0 < x <= 1``, or nothing where any finite number will do."""
        left = "" if math.isinf(self.low) else f"{self.low:g} {'<' if self.open_low else '<='} "
        right = "" if math.isinf(self.high) else f" {'<' if self.open_high else '<='} {self.high:g}"
        return f"{left}x{right}" if left or right else ""


FINITE = Range()
POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, 1)
BETWEEN = Range(0, 1, open_low=True, open_high=True)
PROBABILITY = Range(0, 1, open_low=True, open_high=True, meaning="a failure probability")
SEED = Range(0, 2**63 - 1)


def check_delta(delta: float) -> None:
    """A failure probability, checked before it is divided among anything.

    Raises:
        ConfigError: it is not strictly between 0 and 1.
    """
    PROBABILITY.check(f"delta={delta}", delta)
