"""The certified radius of one sample, to a stated resolution, and the attack's radius above it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.verify.cascade import decide_property
from lirpa_lip.verify.network import Network
from lirpa_lip.verify.properties import Property
from lirpa_lip.verify.question import Question
from lirpa_lip.verify.records import Verdict
from lirpa_lip.verify.settings import VerifySettings

#: Doublings of the first radius before it is taken for unlimited.
_DOUBLINGS = 20


@dataclass(frozen=True)
class Radii:
    """
    Attributes:
        certified: the property holds on the closed ball of this radius; −inf where none is known.
        refuted: it does not on this one; inf where no violation was found.
        certificate, delta: what all that was certified on the way, the first verdict included, is worth.
    """

    certified: float
    refuted: float
    certificate: str
    delta: float


def search_radius(
    network: Network, claim: Property, question: Question, first: Verdict, settings: VerifySettings, *, index: int
) -> Radii:
    """Halves the bracket between the largest certified and the smallest other radius until it is ``question.radius``.

    A radius that is neither certified nor refuted within the time limit counts as not certified, so that what is found
    is a certified radius, though perhaps not the largest. The j-th verdict takes δ/2^j, so that all together take no
    more than δ.

    Args:
        first: the verdict at ``question.eps``.
    """
    assert question.radius is not None and question.eps is not None
    resolution, eps = parse_epsilon(question.radius), parse_epsilon(question.eps)
    centre = claim.cases[0].region.centre
    state = _Bracket()
    state.note(eps, first)
    tries = 0
    while not state.narrow(resolution) and tries < 2 * _DOUBLINGS + 40:
        value = state.next(eps, resolution)
        tries += 1
        share = replace(settings, delta=settings.delta / 2**tries)
        region = question.ball(centre, value)
        verdict = decide_property(network, question.claim(network, region, claim.label, claim.name), share, index)
        state.note(value, verdict)
        if state.low is not None and state.high is None and tries >= _DOUBLINGS:
            break
    certified = -math.inf if state.low is None else _down(state.low)
    refuted = math.inf if state.broken is None else _up(state.broken)
    return Radii(certified, refuted, "probabilistic" if state.delta else "deterministic", state.delta)


class _Bracket:
    def __init__(self) -> None:
        self.low: Fraction | None = None
        self.high: Fraction | None = None
        self.broken: Fraction | None = None
        self.delta = 0.0

    def note(self, value: Fraction, verdict: Verdict) -> None:
        if verdict.status == "certified":
            self.low = value if self.low is None else max(self.low, value)
            self.delta += verdict.delta
            return
        self.high = value if self.high is None else min(self.high, value)
        if verdict.status == "refuted":
            self.broken = value if self.broken is None else min(self.broken, value)

    def narrow(self, resolution: Fraction) -> bool:
        return self.high is not None and self.high - (self.low or 0) <= resolution

    def next(self, eps: Fraction, resolution: Fraction) -> Fraction:
        if self.high is None:
            assert self.low is not None
            return max(2 * self.low, resolution)
        return ((self.low or Fraction(0)) + self.high) / 2


def _down(value: Fraction) -> float:
    near = float(value)
    return near if Fraction(near) <= value else math.nextafter(near, -math.inf)


def _up(value: Fraction) -> float:
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)
