"""Constraints on inputs and outputs in exact numbers, and their disjunctive normal form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lirpa_lip.errors import DataError

#: Conjunctions that a disjunctive normal form may have.
_LARGEST = 100_000


@dataclass(frozen=True, order=True)
class Variable:
    """Input or output number ``index`` of the flat tensor."""

    is_output: bool
    index: int

    def __str__(self) -> str:
        return f"{'Y' if self.is_output else 'X'}_{self.index}"


@dataclass(frozen=True)
class Affine:
    """``Σ factor · variable + constant``."""

    factors: tuple[tuple[Variable, Fraction], ...] = ()
    constant: Fraction = Fraction(0)

    @classmethod
    def of(cls, variable: Variable) -> Affine:
        return cls(((variable, Fraction(1)),))

    @classmethod
    def constant_of(cls, value: Fraction) -> Affine:
        return cls((), value)

    @classmethod
    def total(cls, parts: Sequence[Affine]) -> Affine:
        summed: dict[Variable, Fraction] = {}
        for part in parts:
            for variable, factor in part.factors:
                summed[variable] = summed.get(variable, Fraction(0)) + factor
        kept = tuple(sorted((v, f) for v, f in summed.items() if f))
        return cls(kept, sum((part.constant for part in parts), Fraction(0)))

    @classmethod
    def product(cls, parts: Sequence[Affine], source: str) -> Affine:
        """
        Raises:
            DataError: two of the factors hold variables.
        """
        varying = [part for part in parts if part.factors]
        if len(varying) > 1:
            raise DataError(f"{source}: a product of variables is no linear constraint; only those can be verified.")
        scale = Fraction(1)
        for part in parts:
            if not part.factors:
                scale *= part.constant
        return varying[0].times(scale) if varying else cls((), scale)

    def times(self, scale: Fraction | int) -> Affine:
        return Affine(tuple((v, f * scale) for v, f in self.factors if scale), self.constant * scale)


@dataclass(frozen=True)
class Comparison:
    """``term ≤ 0``, ``term < 0`` where strict."""

    term: Affine
    strict: bool = False

    @staticmethod
    def make(left: Affine, sign: str, right: Affine) -> Formula:
        """``left sign right``, for the signs ≤, <, ≥, > and = (which is two comparisons)."""
        less = Affine.total([left, right.times(-1)])
        more = less.times(-1)
        if sign == "=":
            return Junction(True, (Comparison(less), Comparison(more)))
        return Comparison(less if sign in ("<=", "<") else more, sign in ("<", ">"))


@dataclass(frozen=True)
class Junction:
    """All of the parts, or at least one of them."""

    is_and: bool
    parts: tuple[Formula, ...]


Formula = Comparison | Junction


def all_of(parts: Iterable[Formula]) -> Junction:
    return Junction(True, tuple(parts))


def disjunctive(formula: Formula, source: str) -> list[tuple[Comparison, ...]]:
    """Conjunctions of which one must hold.

    Raises:
        DataError: there would be more than can be worked on.
    """
    if isinstance(formula, Comparison):
        return [(formula,)]
    if not formula.is_and:
        return [found for part in formula.parts for found in disjunctive(part, source)]
    plain = tuple(part for part in formula.parts if isinstance(part, Comparison))
    found: list[tuple[Comparison, ...]] = [plain]
    for part in formula.parts:
        if isinstance(part, Junction):
            choices = disjunctive(part, source)
            if len(found) * len(choices) > _LARGEST:
                raise DataError(f"{source}: its and/or multiply to more than {_LARGEST} cases; split the property.")
            found = [(*before, *choice) for before in found for choice in choices]
    return found
