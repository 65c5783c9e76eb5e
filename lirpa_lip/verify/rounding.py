"""Exact numbers of decimal text as floating point ones, rounded in the direction that keeps a claim true."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from lirpa_lip.errors import DataError
from lirpa_lip.ranges import exact_number

#: Twice the binary digits that roots are rounded up to.
_DIGITS = 200


def exact(text: str) -> Fraction:
    """The number that a decimal text stands for, digit by digit.

    Raises:
        DataError: it is no finite number.
    """
    try:
        return exact_number(text.strip())
    except ValueError as error:
        raise DataError(f"{text!r} is no finite number; write it as 0.5, 1e-3 or 24/255.") from error


def above(value: Fraction, kind: type[np.floating] = np.float64) -> float:
    """A number of a type that is at least ``value``; the smallest, or (rounded twice) the one after it."""
    near = kind(nearest(value))
    while not math.isinf(near) and Fraction(float(near)) < value:
        near = np.nextafter(near, kind(math.inf))
    return float(near)


def below(value: Fraction, kind: type[np.floating] = np.float64) -> float:
    """A number of a type that is at most ``value``; the largest, or the one before it."""
    return -above(-value, kind)


def root_above(value: Fraction) -> Fraction:
    """A fraction that is at least the square root, and equal to it where that is one."""
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if top**2 == value.numerator and bottom**2 == value.denominator:
        return Fraction(top, bottom)
    shift = max(0, _DIGITS - value.numerator.bit_length() + value.denominator.bit_length())
    shift += shift % 2
    scaled = (value.numerator << shift) // value.denominator
    return Fraction(math.isqrt(scaled) + 1, 1 << (shift // 2))


def nearest(value: Fraction) -> float:
    """The float64 number nearest to ``value``.

    Raises:
        DataError: there is none.
    """
    try:
        return float(value)
    except OverflowError as error:
        digits = round((value.numerator.bit_length() - value.denominator.bit_length()) * math.log10(2))
        raise DataError(f"a number of some {digits} digits exceeds what floats hold.") from error
