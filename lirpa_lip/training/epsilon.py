"""Radii, read exactly: 36/255 is the fraction and not 0.141, and conversions round so that a ball never shrinks."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from lirpa_lip.errors import ConfigError
from lirpa_lip.ranges import exact_number

_LARGEST = 10**6
"""No two images in [0, 1] of up to 10¹² pixels are further apart."""


def parse_epsilon(text: str | float | Fraction) -> Fraction:
    """The exact value of ``"36/255"``, ``"1.58"``, ``0.5``, …

    A float is read by its shortest decimal form (1.58 means 158/100), as whoever typed it meant it.

    Raises:
        ConfigError: it is no number, or it is negative or not finite.
    """
    try:
        value = text if isinstance(text, Fraction) else exact_number(str(text).replace(" ", ""))
    except ValueError as error:
        raise ConfigError(f"epsilon {text!r} is no number; write it as 1.58 or 36/255.") from error
    if value < 0:
        raise ConfigError(f"epsilon {text!r} is negative; a radius is at least 0.")
    if value > _LARGEST:
        raise ConfigError(f"epsilon {text!r} is larger than any distance between images; a radius is a small number.")
    return value


def parse_epsilons(text: str) -> dict[str, Fraction]:
    """Comma-separated radii, keyed by what was written: ``"0.5, 36/255"``; 0.3 and 0.30 are one radius."""
    labels = [part.strip() for part in str(text).split(",") if part.strip()]
    if not labels:
        raise ConfigError("no epsilon given; write one or more, separated by commas, as in 0.5,36/255.")
    found: dict[str, Fraction] = {}
    for label in labels:
        value = parse_epsilon(label)
        if value not in found.values():
            found[label] = value
    return found


def rounded_up(value: Fraction, dtype: torch.dtype = torch.float64) -> float:
    """The smallest number of ``dtype`` that is at least ``value``: its ball contains the one asked for."""
    nearest = torch.tensor(float(value), dtype=dtype)
    if Fraction(nearest.item()) < value:
        nearest = torch.nextafter(nearest, torch.tensor(math.inf, dtype=dtype))
    return float(nearest.item())
