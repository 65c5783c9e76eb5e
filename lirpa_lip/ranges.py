"""What a number may be, written once: configuration files, flags and their help are all checked and worded from it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from lirpa_lip.errors import ConfigError

LARGEST_WHOLE = 2**63 - 1
#: No radius, and no number of a property, is of another size; Python would make 10 ** exponent of it.
_LARGEST_EXPONENT = 9999
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e(?P<exponent>[+-]?\d+))?(/\d+)?", re.ASCII | re.IGNORECASE)


def exact_number(text: str) -> Fraction:
    """The number that is written as 0.5, 1e-3 or 24/255, digit by digit.

    Python's own reading also takes 1_0 and digits of other scripts, which no other tool that reads the text would.

    Raises:
        ValueError: it is written otherwise, is infinite, or has an exponent of more than four digits.
    """
    found = _NUMBER.fullmatch(text)
    if found is None or abs(int(found["exponent"] or 0)) > _LARGEST_EXPONENT:
        raise ValueError(f"{text!r} is not written as a number")
    try:
        return Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} divides by zero") from error


def plain_number(text: str, kind: type[int] | type[float]) -> int | float:
    """``kind(text)``, for numbers as everybody writes them.

    Raises:
        ValueError: it is none, or only Python's (1_0, digits of other scripts).
    """
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is not written as a number")
    return kind(text)


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
        finite = math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST_WHOLE
        if not finite:
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
            raise ConfigError(f"{name} {self.demand_of(value)}; got {value}.")

    def demand_of(self, value: float) -> str:
        """What such a number must be: also no whole one that no machine word holds."""
        huge = isinstance(value, int) and abs(value) > LARGEST_WHOLE
        return f"must have less than {len(str(LARGEST_WHOLE))} digits" if huge else self.demand

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
SEED = Range(0, LARGEST_WHOLE)


def check_delta(delta: float) -> None:
    """A failure probability, checked before it is divided among anything.

    Raises:
        ConfigError: it is not strictly between 0 and 1.
    """
    PROBABILITY.check(f"delta={delta}", delta)
