"""No wrong verdict on small networks that a mixed integer programme decides; a broken bound would be seen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from references import verdicts as exact

from lirpa_lip.verify import branching, cascade
from lirpa_lip.verify.branch_settings import BranchSettings
from lirpa_lip.verify.settings import VerifySettings

SETTINGS = VerifySettings(time_limit=5, restarts=3, pgd_steps=40)


def test_no_verdict_is_wrong():
    found = [exact.compare(seed, SETTINGS) for seed in range(24)]
    assert not [pair for pair in found if exact.is_wrong(*pair)]
    statuses = [status for status, _ in found]
    assert statuses.count("certified") >= 5 and statuses.count("refuted") >= 5
    assert statuses.count("open") <= 6


def test_no_verdict_of_branching_is_wrong(monkeypatch):
    """On neurons alone, without what comes before it."""
    stages = cascade._stages

    def last(work, index):
        return [stage for stage in stages(work, index) if stage[0] == "branching"]

    monkeypatch.setattr(cascade, "_stages", last)
    found = [exact.compare(seed, replace(SETTINGS, time_limit=4)) for seed in range(12)]
    assert not [pair for pair in found if exact.is_wrong(*pair)]
    assert sum(status == "certified" for status, _ in found) >= 4


def test_no_verdict_on_convolutions_is_wrong(monkeypatch):
    """By branching alone, on images of 3 × 3 or 4 × 4, which have too many dimensions for cuts of the input."""
    stages = cascade._stages

    def last(work, index):
        return [stage for stage in stages(work, index) if stage[0] == "branching"]

    monkeypatch.setattr(cascade, "_stages", last)
    # small networks get balls of a row's own as well
    monkeypatch.setattr(branching, "BranchSettings", partial(BranchSettings, fit_neurons=0, fit_steps=20))
    found = [exact.compare(seed, replace(SETTINGS, time_limit=2), convolutions=True) for seed in range(2, 26, 3)]
    assert not [pair for pair in found if exact.is_wrong(*pair)]
    assert sum(status == "certified" for status, _ in found) >= 4


@pytest.mark.parametrize("name", ["local_bounds", "crown_bounds"])
def test_a_broken_bound_is_seen(monkeypatch, name):
    """Bounds that are too good by a fifth of their distance from what was seen make wrong verdicts."""
    right = getattr(cascade, name)

    def broken(*arguments, **options):
        found = right(*arguments, **options)
        return replace(found, lower=found.lower + 0.3)

    monkeypatch.setattr(cascade, name, broken)
    quick = replace(SETTINGS, pgd_steps=0, restarts=0, branch=False)  # which hide many
    assert any(exact.is_wrong(*exact.compare(seed, quick)) for seed in range(24))


def test_the_programme_is_right():
    """On a grid of inputs nothing is further inside a case than it says, and somewhere nearly as far."""
    for seed in range(10):
        rng = np.random.RandomState(seed)
        model = exact.random_network(rng)
        claim = exact.random_property(rng, model)
        for case in claim.cases:
            x = case.region.sample(4000, torch.Generator().manual_seed(1))
            y = model(x).detach().double().numpy()
            sides = []
            for row in case.rows:
                c = np.zeros(y.shape[1])
                for index, value in row.coefficients:
                    c[index] = float(value)
                sides.append(float(row.bound) - y @ c)
            seen = np.min(sides, axis=0).max()
            found = exact.slack(model, case)
            assert seen <= found + 1e-5 and found <= seen + 0.5 * (1 + abs(found))
