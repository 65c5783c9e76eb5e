"""Properties from VNN-LIB files, versions 1.0 and 2.0."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch

from lirpa_lip.errors import DataError
from lirpa_lip.verify.expressions import Comparison, Variable, disjunctive
from lirpa_lip.verify.input_region import InputRegion, Span
from lirpa_lip.verify.properties import Case, OutputRow, Property
from lirpa_lip.verify.vnnlib1 import parse_vnnlib1
from lirpa_lip.verify.vnnlib2 import parse_vnnlib2

_VERSION_2 = re.compile(r"\(\s*vnnlib-version\s*<\s*2")

Ranges = tuple[Span, ...]


def read_vnnlib(path: str | Path, shape: Sequence[int], outputs: int, dtype: torch.dtype) -> Property:
    """The property of a file, for a network with one input ``shape`` and ``outputs`` outputs.

    Raises:
        DataError: the file is absent or damaged; it speaks of inputs or outputs that the network lacks; its inputs are
            no boxes, not bounded, or empty.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a property: {error}.") from error
    parse = parse_vnnlib2 if _VERSION_2.search(text) else parse_vnnlib1
    formula, declared = parse(text, path.name)
    inputs = 1
    for size in shape:
        inputs *= size
    _check_variables(declared, inputs, outputs, path.name)
    regions: dict[Ranges, InputRegion] = {}
    cases: dict[tuple[Ranges, tuple[OutputRow, ...]], Case] = {}
    empty = 0
    for conjunction in disjunctive(formula, path.name):
        ranges = _ranges(conjunction, inputs, path.name)
        rows = _rows(conjunction, path.name)
        if ranges is None or rows is None:
            empty += 1
            continue
        if ranges not in regions:
            regions[ranges] = InputRegion.from_ranges(ranges, shape, dtype)
        cases[ranges, rows] = Case(regions[ranges], rows)
    if not cases:
        raise DataError(
            f"{path.name}: its constraints contradict each other, so that no input is left (all {empty} cases are "
            "empty); correct its bounds."
        )
    return Property(tuple(cases.values()), path.name)


def _check_variables(declared: set[Variable], inputs: int, outputs: int, source: str) -> None:
    for is_output, count, what in ((False, inputs, "inputs"), (True, outputs, "outputs")):
        own = {v.index for v in declared if v.is_output == is_output}
        if own and max(own) >= count:
            name = Variable(is_output, max(own))
            raise DataError(f"{source} declares {name}; the network has {count} {what}, counted from 0.")
        if not is_output and len(own) < count:
            raise DataError(f"{source} declares {len(own)} inputs; the network has {count}. They belong together?")


def _ranges(conjunction: Sequence[Comparison], inputs: int, source: str) -> Ranges | None:
    """The box of a conjunction's inputs; None where it is empty."""
    ends: dict[tuple[int, bool], tuple[Fraction, bool]] = {}
    for part in conjunction:
        if any(v.is_output for v, _ in part.term.factors):
            continue
        if not part.term.factors:  # a comparison of two numbers
            if part.term.constant > 0 or (part.strict and part.term.constant == 0):
                return None
            continue
        if len(part.term.factors) > 1:
            names = ", ".join(str(v) for v, _ in part.term.factors)
            raise DataError(
                f"{source}: a constraint on several inputs at once ({names}) is no box; only boxes are read."
            )
        variable, factor = part.term.factors[0]
        _tighten(ends, variable.index, factor > 0, -part.term.constant / factor, part.strict)
    found: list[Span] = []
    for index in range(inputs):
        for is_upper, side in ((False, "below"), (True, "above")):
            if (index, is_upper) not in ends:
                raise DataError(f"{source}: X_{index} is not bounded {side}; give it both ends.")
        (low, open_low), (high, open_high) = ends[index, False], ends[index, True]
        found.append(Span(low, high, open_low, open_high))
    return None if any(span.empty for span in found) else tuple(found)


def _tighten(
    ends: dict[tuple[int, bool], tuple[Fraction, bool]], index: int, is_upper: bool, value: Fraction, strict: bool
) -> None:
    before = ends.get((index, is_upper))
    tighter = before is None or (value < before[0] if is_upper else value > before[0])
    if tighter or (before is not None and value == before[0] and strict):
        ends[index, is_upper] = value, strict


def _rows(conjunction: Sequence[Comparison], source: str) -> tuple[OutputRow, ...] | None:
    rows = []
    for part in conjunction:
        factors = part.term.factors
        if not any(v.is_output for v, _ in factors):
            continue
        if not all(v.is_output for v, _ in factors):
            raise DataError(f"{source}: a constraint that holds inputs and outputs at once cannot be verified.")
        coefficients = tuple((v.index, f) for v, f in factors)
        rows.append(OutputRow(coefficients, -part.term.constant, part.strict))
    if not rows:
        raise DataError(f"{source}: a case says nothing of the outputs, so that any input would violate it.")
    return tuple(dict.fromkeys(rows))
