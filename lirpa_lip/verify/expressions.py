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


#: One variable, or two of which the product is meant, in order.
Monomial = tuple[Variable, ...]


@dataclass(frozen=True)
class Polynomial:
    """``Σ factor · monomial + constant``, of degree at most two; squares and products are of inputs alone."""

    terms: tuple[tuple[Monomial, Fraction], ...] = ()
    constant: Fraction = Fraction(0)

    @classmethod
    def of(cls, variable: Variable) -> Polynomial:
        return cls((((variable,), Fraction(1)),))

    @classmethod
    def constant_of(cls, value: Fraction) -> Polynomial:
        return cls((), value)

    @classmethod
    def total(cls, parts: Sequence[Polynomial]) -> Polynomial:
        summed: dict[Monomial, Fraction] = {}
        for part in parts:
            for monomial, factor in part.terms:
                summed[monomial] = summed.get(monomial, Fraction(0)) + factor
        kept = tuple(sorted((m, f) for m, f in summed.items() if f))
        return cls(kept, sum((part.constant for part in parts), Fraction(0)))

    @classmethod
    def product(cls, parts: Sequence[Polynomial], source: str) -> Polynomial:
        """
        Raises:
            DataError: it has more than two factors that hold variables, or two and one of them holds an output.
        """
        found = cls.constant_of(Fraction(1))
        for part in parts:
            if found.terms and part.terms:
                found = found._multiplied(part, source)
            else:
                found = part.times(found.constant) if part.terms else found.times(part.constant)
        return found

    def _multiplied(self, other: Polynomial, source: str) -> Polynomial:
        for part in (self, other):
            if part.degree > 1 or any(v.is_output for v in part.variables):
                raise DataError(
                    f"{source}: of products of variables only those of two inputs can be verified, as in a ball's "
                    "(X_0 - 1) * (X_0 - 1)."
                )
        mixed = [
            Polynomial((((first, second) if first <= second else (second, first), f * g),))
            for (first,), f in self.terms
            for (second,), g in other.terms
        ]
        linear = [self.times(other.constant), other.times(self.constant)]
        constant = Polynomial.constant_of(-self.constant * other.constant)  # which the two lines above hold twice
        return Polynomial.total([*mixed, *linear, constant])

    @property
    def degree(self) -> int:
        return max((len(monomial) for monomial, _ in self.terms), default=0)

    @property
    def variables(self) -> list[Variable]:
        return list(dict.fromkeys(v for monomial, _ in self.terms for v in monomial))

    @property
    def linear(self) -> list[tuple[Variable, Fraction]]:
        """The variables that stand by themselves, with their factors."""
        return [(monomial[0], factor) for monomial, factor in self.terms if len(monomial) == 1]

    def times(self, scale: Fraction | int) -> Polynomial:
        return Polynomial(tuple((m, f * scale) for m, f in self.terms if scale), self.constant * scale)


@dataclass(frozen=True)
class Comparison:
    """``term ≤ 0``, ``term < 0`` where strict."""

    term: Polynomial
    strict: bool = False

    @staticmethod
    def make(left: Polynomial, sign: str, right: Polynomial) -> Formula:
        """``left sign right``, for the signs ≤, <, ≥, > and = (which is two comparisons)."""
        less = Polynomial.total([left, right.times(-1)])
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
