"""What is verified: a region of inputs, and outputs that must not occur on it.

A property is written by its violations, as VNN-LIB has it: a list of cases, each a region and rows ``a · y ≤ b`` that
would all have to hold at one point of it. The property holds if no case has such a point. So "class 3 stays first" is
one case for every rival j, of one row ``y_3 − y_j ≤ 0``; an output corridor is two cases; several rows in one case say
that only all of them together are a violation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lirpa_lip.errors import DataError
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.rounding import above, below

#: Integers up to here are float64 numbers.
_EXACT = 2**53


@dataclass(frozen=True)
class OutputRow:
    """``Σ coefficient · y_index ≤ bound``, or ``<`` where strict, in exact numbers.

    Attributes:
        coefficients: pairs (index of a flat output, coefficient ≠ 0).
        bound: what the sum is compared with.
        strict: whether equality is left out.
    """

    coefficients: tuple[tuple[int, Fraction], ...]
    bound: Fraction
    strict: bool = False

    def holds(self, y: Sequence[float]) -> bool:
        """Whether it holds for these outputs, decided in exact arithmetic; never for numbers that are not finite."""
        picked = [(c, y[i]) for i, c in self.coefficients]
        if not all(math.isfinite(value) for _, value in picked):
            return False
        total = sum((c * Fraction(value) for c, value in picked), Fraction(0))
        return total < self.bound if self.strict else total <= self.bound


@dataclass(frozen=True)
class Case:
    """A violation: a point of the region at which all rows hold.

    Attributes:
        region: the `InputRegion`.
        rows: its `OutputRow` conditions.
    """

    region: InputRegion
    rows: tuple[OutputRow, ...]

    def violated(self, x: Tensor, y: Sequence[float]) -> bool:
        """Whether ``(x, y)`` is one, in exact arithmetic."""
        return self.region.holds(x) and all(row.holds(y) for row in self.rows)


@dataclass(frozen=True)
class Property:
    """The property holds if no case has a point.

    Attributes:
        cases: its violations, each a `Case`.
        name: for messages and files.
        label: the class that must stay first, for label robustness; None for other properties.

    Raises:
        DataError: there are no cases.
    """

    cases: tuple[Case, ...]
    name: str = ""
    label: int | None = None

    def __post_init__(self) -> None:
        if not self.cases:
            raise DataError(
                f"the property {self.name or 'given'} has no case that could be violated: nothing to verify."
            )

    def violated(self, x: Tensor, y: Sequence[float]) -> bool:
        """Whether ``(x, y)`` violates it."""
        return any(case.violated(x, y) for case in self.cases)


@dataclass(frozen=True)
class Margins:
    """Rows as tensors: row i excludes its violation wherever ``C_i y + d_i > 0``.

    Attributes:
        c: ``(rows, outputs)`` float64, exact multiples of the rows' coefficients.
        d: ``(rows,)`` float64, rounded down, so that a positive margin is one of the exact row.
        case: ``(rows,)``, the case that a row belongs to.
    """

    c: Tensor
    d: Tensor
    case: Tensor

    def per_case(self, margin: Tensor) -> Tensor:
        """``(…, rows)`` -> ``(…, cases)``: a case is excluded as soon as one of its rows is, so the largest counts."""
        cases = int(self.case.max()) + 1
        out = torch.full((*margin.shape[:-1], cases), -math.inf, dtype=margin.dtype, device=margin.device)
        index = self.case.to(margin.device).expand_as(margin)
        return out.scatter_reduce(-1, index, margin, "amax")


def margins_of(cases: Sequence[Case], outputs: int) -> Margins:
    """
    Raises:
        DataError: a row names an output that the network lacks, or a coefficient needs more digits than float64 has.
    """
    rows = [(number, row) for number, case in enumerate(cases) for row in case.rows]
    c = torch.zeros(len(rows), outputs, dtype=torch.float64)
    d = torch.zeros(len(rows), dtype=torch.float64)
    for place, (_, row) in enumerate(rows):
        scale = _scale(row)
        for index, coefficient in row.coefficients:
            if index >= outputs:
                raise DataError(f"the property names output {index}; the network has {outputs}, counted from 0.")
            c[place, index] = float(coefficient * scale)
        d[place] = below(-row.bound * scale)
    return Margins(c, d, torch.tensor([number for number, _ in rows]))


def _scale(row: OutputRow) -> int:
    """A factor by which all coefficients become float64 numbers: 1, or what makes them integers."""
    if all(Fraction(float(value)) == value for _, value in row.coefficients):
        return 1
    scale = math.lcm(*(value.denominator for _, value in row.coefficients))
    if any(abs(value * scale) > _EXACT for _, value in row.coefficients):
        raise DataError(
            "a coefficient of the property needs more digits than float64 has; write fewer digits, or multiply the "
            "constraint so that its coefficients are whole numbers."
        )
    return scale


def stays_first(region: InputRegion, label: int, outputs: int, name: str = "") -> Property:
    """Class ``label`` is the only largest output on the whole region; a tie is a violation.

    Args:
        region: an `InputRegion`.
        label: the class, counted from 0.
        outputs: how many the network has.
        name: for messages and files.

    Raises:
        DataError: there is no such class, or no other.
    """
    if not 0 <= label < outputs or outputs < 2:
        raise DataError(f"label {label} is none of the network's {outputs} classes, counted from 0.")
    one = Fraction(1)
    rows = [OutputRow(((label, one), (rival, -one)), Fraction(0)) for rival in range(outputs) if rival != label]
    return Property(tuple(Case(region, (row,)) for row in rows), name, label)


def corridor(region: InputRegion, nominal: Sequence[Fraction], width: Fraction, name: str = "") -> Property:
    """Every output stays within ``width`` of its nominal value, ends included.

    Args:
        region: an `InputRegion`.
        nominal: a value for each output.
        width: half the width of the corridor, in units of the outputs.
        name: for messages and files.

    Raises:
        DataError: the width is negative.
    """
    if width < 0:
        raise DataError(f"a corridor of half-width {float(width):g} is empty; give a number >= 0.")
    one = Fraction(1)
    rows = [
        OutputRow(((index, sign),), sign * value - width, strict=True)
        for index, value in enumerate(nominal)
        for sign in (one, -one)
    ]
    return Property(tuple(Case(region, (row,)) for row in rows), name)


def linear(region: InputRegion, c: Tensor, d: Tensor, name: str = "") -> Property:
    """``C y ≤ d`` on the whole region, all rows, as exact as they are given.

    Args:
        region: an `InputRegion`.
        c: ``(rows, outputs)``.
        d: ``(rows,)``.
        name: for messages and files.
    """
    pairs = zip(c.double().tolist(), d.double().tolist(), strict=True)
    cases = []
    for coefficients, bound in pairs:
        kept = tuple((i, -Fraction(v)) for i, v in enumerate(coefficients) if v)
        cases.append(Case(region, (OutputRow(kept, -Fraction(bound), strict=True),)))
    return Property(tuple(cases), name)


__all__ = ["Case", "Margins", "OutputRow", "Property", "above", "corridor", "linear", "margins_of", "stays_first"]
