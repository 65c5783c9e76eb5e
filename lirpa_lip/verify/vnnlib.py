"""Properties from VNN-LIB files, versions 1.0 and 2.0."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from lirpa_lip.errors import DataError
from lirpa_lip.verify.exact_ball import ExactBall, ball_of
from lirpa_lip.verify.expressions import Comparison, Variable, disjunctive
from lirpa_lip.verify.input_region import InputRegion, Span
from lirpa_lip.verify.properties import Case, OutputRow, Property
from lirpa_lip.verify.rounding import root_above
from lirpa_lip.verify.vnnlib1 import parse_vnnlib1
from lirpa_lip.verify.vnnlib2 import parse_vnnlib2

_VERSION_2 = re.compile(r"\(\s*vnnlib-version\s*<\s*2")

#: By flat input; None where nothing but a ball bounds it.
Ranges = tuple[Span | None, ...]


@dataclass(frozen=True)
class _Inputs:
    """Ranges of the inputs, and the ball that cuts them."""

    ranges: Ranges
    ball: ExactBall | None

    def region(self, shape: Sequence[int], dtype: torch.dtype, source: str) -> InputRegion:
        try:
            if self.ball is not None:
                return InputRegion.from_ball(self.ball, self.ranges, shape, dtype)
            return InputRegion.from_ranges([span for span in self.ranges if span is not None], shape, dtype)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error


def read_vnnlib(path: str | Path, shape: Sequence[int], outputs: int, dtype: torch.dtype) -> Property:
    """The property of a file, for a network with one input ``shape`` and ``outputs`` outputs.

    Raises:
        DataError: the file is absent or damaged; it speaks of inputs or outputs that the network lacks; its inputs are
            neither boxes nor balls, not bounded, or empty.
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
    regions: dict[_Inputs, InputRegion] = {}
    cases: dict[tuple[_Inputs, tuple[OutputRow, ...]], Case] = {}
    empty = 0
    for conjunction in disjunctive(formula, path.name):
        rows = _rows(conjunction, path.name)
        asked = _inputs(conjunction, inputs, path.name)
        if asked is None or rows is None:
            empty += 1
            continue
        if asked not in regions:
            regions[asked] = asked.region(shape, dtype, path.name)
        cases[asked, rows] = Case(regions[asked], rows)
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


def _inputs(conjunction: Sequence[Comparison], inputs: int, source: str) -> _Inputs | None:
    """What a conjunction says of the inputs; None where no input meets it."""
    ends: dict[tuple[int, bool], tuple[Fraction, bool]] = {}
    balls: set[ExactBall] = set()
    for part in conjunction:
        variables = part.term.variables
        if any(v.is_output for v in variables):
            continue
        if not variables:  # a comparison of two numbers
            if part.term.constant > 0 or (part.strict and part.term.constant == 0):
                return None
        elif part.term.degree > 1:
            ball = ball_of(part, source)
            if ball is None:
                return None
            balls.add(ball)
        elif len(variables) > 1:
            names = ", ".join(str(v) for v in variables)
            raise DataError(
                f"{source}: a constraint on several inputs at once ({names}) is no box; only boxes and balls are read."
            )
        else:
            variable, factor = part.term.linear[0]
            _tighten(ends, variable.index, factor > 0, -part.term.constant / factor, part.strict)
    if len(balls) > 1:
        raise DataError(f"{source}: a case has {len(balls)} balls; one, cut by ranges, can be verified.")
    ball = next(iter(balls), None)
    ranges = _ranges(ends, inputs, ball, source)
    if any(span is not None and span.empty for span in ranges) or (ball is not None and _misses(ball, ranges)):
        return None
    return _Inputs(ranges, ball)


def _misses(ball: ExactBall, ranges: Ranges) -> bool:
    """Whether the ball is a point that an open end leaves out."""
    spans = [(middle, ranges[index]) for index, middle in ball.centre]
    return ball.squared == 0 and any(
        span is not None and ((span.open_low and middle == span.low) or (span.open_high and middle == span.high))
        for middle, span in spans
    )


def _ranges(
    ends: Mapping[tuple[int, bool], tuple[Fraction, bool]], inputs: int, ball: ExactBall | None, source: str
) -> Ranges:
    """The range of every input; where one end is missing, the ball's."""
    middles = dict(ball.centre) if ball is not None else {}
    radius = root_above(ball.squared) if ball is not None else Fraction(0)
    found: list[Span | None] = []
    for index in range(inputs):
        stated = {is_upper: ends[index, is_upper] for is_upper in (False, True) if (index, is_upper) in ends}
        if not stated and index in middles:
            found.append(None)
            continue
        for is_upper, side, reach in ((False, "below", -radius), (True, "above", radius)):
            if is_upper not in stated:
                if index not in middles:
                    raise DataError(f"{source}: X_{index} is not bounded {side}; give it both ends.")
                stated[is_upper] = middles[index] + reach, False
        (low, open_low), (high, open_high) = stated[False], stated[True]
        found.append(Span(low, high, open_low, open_high))
    return tuple(found)


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
        variables = part.term.variables
        if not any(v.is_output for v in variables):
            continue
        if not all(v.is_output for v in variables):
            raise DataError(f"{source}: a constraint that holds inputs and outputs at once cannot be verified.")
        coefficients = tuple((v.index, f) for v, f in part.term.linear)
        rows.append(OutputRow(coefficients, -part.term.constant, part.strict))
    if not rows:
        raise DataError(f"{source}: a case says nothing of the outputs, so that any input would violate it.")
    return tuple(dict.fromkeys(rows))
