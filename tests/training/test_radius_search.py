"""Chords find the radius of a concave margin in few verdicts, and never claim a radius that was not verified."""

from __future__ import annotations

import pytest
import torch

from lirpa_lip.training.radius_search import Brackets


def searched(margin, function, eps=(0.5,), steps=2, exact=True):
    """Brackets after trying eps and so many guesses on m(ε), and all radii tried."""
    start = torch.tensor([margin], dtype=torch.float64)
    found, tried = Brackets(start, exact), []

    def attempt(value):
        tried.append(value.item())
        found.note(torch.tensor([0]), value.reshape(1), torch.tensor([function(value.item())], dtype=torch.float64))

    for value in sorted(eps, reverse=True):
        if found.safe < value:
            attempt(torch.tensor(value, dtype=torch.float64))
    for _ in range(steps):
        guess = found.guess()[0]
        assert found.safe.clamp(min=0) < guess < found.failed
        attempt(guess)
    return found, tried


@pytest.mark.parametrize("curve", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("eps", [(0.5,), (0.05,), (0.05, 0.5)])
def test_two_chords_come_near(curve, eps):
    def function(r):
        return 1 - 4 * r - curve * r * r

    root = 0.25 if curve == 0 else (-4 + (16 + 4 * curve) ** 0.5) / (2 * curve)
    found, tried = searched(1.0, function, eps)
    assert 0.85 * root < found.safe.item() <= root < found.failed.item() or root - found.safe.item() < 1e-9
    assert all(function(r) > 0 for r in tried if r <= found.safe.item())


def test_bounds_that_say_little():
    """Infinite or NaN values, and methods that stop once a sign is known, fall back to halving and growing."""
    found, _ = searched(1.0, lambda r: 1 - 4 * r if r < 0.2 else float("-inf"), steps=6)
    assert 0.17 < found.safe.item() < 0.2
    found, _ = searched(1.0, lambda r: 1e-9 if r < 0.25 else 1 - 4 * r, (0.05,), steps=6, exact=False)
    assert 0.2 < found.safe.item() < 0.25
    found, _ = searched(1.0, lambda r: -1.0, steps=3)
    assert found.safe.item() == float("-inf") and 0 < found.failed.item() < 0.5


def test_a_radius_known_from_elsewhere_is_kept():
    found = Brackets(torch.tensor([1.0, 1.0], dtype=torch.float64))
    found.raise_to(torch.tensor([0.1, float("-inf")], dtype=torch.float64))
    assert found.safe.tolist() == [0.1, float("-inf")]
    assert (found.guess() > found.safe.clamp(min=0)).all()
