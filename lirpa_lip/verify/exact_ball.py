"""An ℓ₂ ball in exact numbers, as a file states it: around a centre and of a radius that no float may be equal to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lirpa_lip.errors import DataError
from lirpa_lip.verify.expressions import Comparison


@dataclass(frozen=True)
class ExactBall:
    """``Σ (x_i − centre_i)² ≤ squared``, ``<`` where open.

    Attributes:
        centre: by index of the flat input; of the inputs that it names alone.
        squared: the radius' square, ≥ 0.
        is_open: whether the sphere is left out.
    """

    centre: tuple[tuple[int, Fraction], ...]
    squared: Fraction
    is_open: bool = False

    def holds(self, x: Sequence[float]) -> bool:
        total = sum(((Fraction(x[index]) - middle) ** 2 for index, middle in self.centre), Fraction(0))
        return total < self.squared if self.is_open else total <= self.squared


def ball_of(part: Comparison, source: str) -> ExactBall | None:
    """The ball that a constraint with squares of inputs states; None where no point meets it.

    With ``a Σ x_i² + Σ b_i x_i + c ≤ 0`` the centre is ``−b_i / 2a`` and the radius' square ``Σ centre_i² − c / a``.

    Raises:
        DataError: it is no ball: products of different inputs, squares of unequal weight, inputs without a square, or
            what lies outside a ball.
    """
    squares: Mapping[int, Fraction] = {m[0].index: f for m, f in part.term.terms if len(m) == 2 and m[0] == m[1]}
    weights = set(squares.values())
    if len(squares) < sum(len(m) == 2 for m, _ in part.term.terms):
        raise DataError(f"{source}: a product of two different inputs belongs to no ball; only balls are read.")
    weight = weights.pop()
    if weights or any(v.index not in squares for v, _ in part.term.linear):
        raise DataError(
            f"{source}: a constraint with squares of inputs is no ball; all of its inputs must be squared, with one "
            "weight."
        )
    if weight < 0:
        raise DataError(f"{source}: the outside of a ball is no region that can be verified; state a ball.")
    middles = dict.fromkeys(squares, Fraction(0)) | {v.index: -f / (2 * weight) for v, f in part.term.linear}
    squared = sum((middle**2 for middle in middles.values()), Fraction(0)) - part.term.constant / weight
    if squared < 0 or (squared == 0 and part.strict):
        return None
    return ExactBall(tuple(sorted(middles.items())), squared, part.strict)
