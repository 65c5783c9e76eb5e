"""What certificates say together: the weakest kind counts, in the order of strength and not of the alphabet."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lirpa_lip.results import DETERMINISTIC, KINDS, Certificate, LipschitzResult, weaker, weakest

SURE, LIKELY, GUESS = DETERMINISTIC, Certificate("probabilistic", 1e-6), Certificate.of("estimate", 1e-6)


def test_the_weakest_of_any_kinds():
    for kinds in itertools.product(KINDS, repeat=3):
        assert weaker(*kinds) == next(kind for kind in reversed(KINDS) if kind in kinds)
        assert weakest(Certificate.of(kind, 0.1) for kind in kinds).kind == weaker(*kinds)


def test_claims_together_and_claims_apart():
    assert SURE.both(LIKELY) == LIKELY.both(SURE) == LIKELY
    assert LIKELY.both(LIKELY) == ("probabilistic", pytest.approx(2e-6))
    assert weakest([LIKELY, SURE, Certificate("probabilistic", 3e-6)]) == ("probabilistic", 3e-6)
    assert weakest([SURE, SURE]) == SURE
    with pytest.raises(ValueError):
        weakest([])


@pytest.mark.parametrize("others", [[LIKELY], [SURE], [LIKELY, SURE]])
def test_an_estimate_among_them_leaves_no_bound(others):
    for certificates in itertools.permutations([GUESS, *others]):
        found = weakest(certificates)
        assert found.kind == "estimate" and math.isnan(found.delta)
    assert GUESS.both(others[0]).kind == "estimate" and math.isnan(others[0].both(GUESS).delta)


def test_results_tell_the_kind_and_the_chance():
    result = LipschitzResult(torch.ones(1), torch.zeros(1), LIKELY)
    assert (result.certificate, result.failure_probability) == result.worth == ("probabilistic", 1e-6)
