"""Random models, regions, settings and methods against independent oracles: a part of ``make fuzz`` at every run."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from fuzz.kinds import KINDS, bounds_hold
from fuzz.oracles import Violation, check_values
from fuzz.regions import Ball
from fuzz.run import run

CASES, SEED = 20, 2026


@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_is_violated_and_no_foreign_exception_escapes(kind: str) -> None:
    failures = [o for o in run(SEED, 0, CASES, kind) if o.failed]
    assert not failures, "\n".join(f"{o.status}, case {o.case}: {o.note}" for o in failures)


@pytest.mark.parametrize("kind", KINDS)
def test_most_cases_are_not_refused(kind: str) -> None:
    """A fuzzer whose cases are all refused finds nothing."""
    refused = [o for o in run(SEED, 0, 10, kind) if o.status == "refused"]
    assert len(refused) <= 4, refused


def test_cases_repeat() -> None:
    assert list(run(SEED, 3, 3)) == list(run(SEED, 3, 3))


def test_the_oracle_finds_a_bound_that_is_none() -> None:
    model = nn.Linear(2, 2)
    region = Ball(torch.zeros(1, 2), torch.full((1,), 0.5, dtype=torch.float64), 2.0)
    rows = torch.eye(2).unsqueeze(0)
    at, reach = model(region.centre).detach(), 0.5 * model.weight.norm(dim=1).detach()
    generator = torch.Generator().manual_seed(0)
    check_values(model, region, rows, at - reach - 1e-6, at + reach + 1e-6, "right", generator)
    with pytest.raises(Violation, match="exceeds upper"):
        check_values(model, region, rows, at - reach - 1e-6, at + 0.99 * reach, "wrong", generator)


def test_the_fuzzer_finds_a_broken_method(monkeypatch: pytest.MonkeyPatch) -> None:
    from lirpa_lip.regions.region import Region

    whole = Region.support
    monkeypatch.setattr(Region, "support", lambda *args, **kwargs: 0.9 * whole(*args, **kwargs))
    region = Ball(torch.zeros(1, 2), torch.full((1,), 0.5, dtype=torch.float64), 2.0)
    with pytest.raises(Violation):
        for seed in range(20):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(2, 2))
            bounds_hold(random.Random(seed), model, region, ("sdp-crown",))
