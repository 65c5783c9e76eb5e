"""Slopes of secants against secants: their range over an interval, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lirpa_lip.activations.kinked_functions import clip as clip_record
from lirpa_lip.activations.piecewise_linear import PiecewiseLinear

CLIPS = [(0.0, None), (-0.25, None), (None, 0.25), (0.125, 0.75)]  # exact in float32, as the thresholds of a layer


def secants(centre: Tensor, lower: Tensor, upper: Tensor, ends: tuple[float | None, float | None]):
    found = clip_record(*ends).secant_range(centre, lower, upper)
    return found.low, found.high


def intervals(count: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Centres and intervals around them, (count,), some with an end or the centre on a kink, some of no width."""
    generator = torch.Generator().manual_seed(0)
    centre, below, above = (torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(3))
    below, above = below.abs(), above.abs()
    centre[:4] = torch.tensor([0.0, -0.25, 0.25, 0.75])
    below[:20], above[10:30] = 0, 0
    return centre, centre - below, centre + above


def clip(z: Tensor, ends: tuple[float | None, float | None]) -> Tensor:
    return z.clamp(min=ends[0], max=ends[1])


@pytest.mark.parametrize("ends", CLIPS, ids=str)
def test_every_secant_lies_within(ends: tuple[float | None, float | None]) -> None:
    centre, lower, upper = intervals()
    least, most = secants(centre, lower, upper, ends)
    share = torch.linspace(0, 1, 2001, dtype=torch.float64).unsqueeze(1)
    points = lower + share * (upper - lower)
    run = points - centre
    far = run.abs() > 1e-3
    slope = torch.where(far, (clip(points, ends) - clip(centre, ends)) / torch.where(far, run, 1.0), torch.nan)
    wide = (upper - lower) > 0.1
    lowest, highest = slope.nan_to_num(2.0).amin(0)[wide], slope.nan_to_num(-2.0).amax(0)[wide]
    assert (least[wide] <= lowest + 1e-12).all() and (highest <= most[wide] + 1e-12).all()
    # and the ends are reached, but for the grid; a centre on a kink may count either slope there as its own
    off = torch.arange(len(centre))[wide] >= 4
    assert (lowest - least[wide])[off].max() < 2e-2 and (most[wide] - highest)[off].max() < 2e-2
    assert (least >= 0).all() and (most <= 1).all()


@pytest.mark.parametrize("ends", CLIPS, ids=str)
def test_gradients(ends: tuple[float | None, float | None]) -> None:
    centre, lower, upper = (t[40:60].clone().requires_grad_() for t in intervals())
    assert torch.autograd.gradcheck(lambda *interval: secants(*interval, ends), (centre, lower, upper))


@pytest.mark.parametrize("ends", CLIPS, ids=str)
def test_the_steepest_is_the_end_of_the_range(ends: tuple[float | None, float | None]) -> None:
    centre, lower, upper = intervals()
    record = clip_record(*ends)
    on_a_kink = torch.tensor([[k] for k in record.knots]).double()
    off = (centre != on_a_kink).all(0)
    found, whole = record.steepest_secant(centre, lower, upper), record.secant_range(centre, lower, upper)
    torch.testing.assert_close(found[off], whole.high[off], rtol=1e-12, atol=1e-14)
    assert (found <= 1).all() and (found >= 0).all()


@pytest.mark.parametrize("ends", CLIPS, ids=str)
def test_closed_forms_are_those_of_all_points(ends: tuple[float | None, float | None]) -> None:
    """Against the search over all kinks that other activations take."""
    centre, lower, upper = intervals()
    record = clip_record(*ends)
    for closed, searched in zip(secants(centre, lower, upper, ends), _searched(record, centre, lower, upper)):
        torch.testing.assert_close(closed[4:], searched[4:], rtol=1e-9, atol=1e-12)


def _searched(record: PiecewiseLinear, centre: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    found = record._all_secants(centre, lower, upper)
    return found.low, found.high


def test_no_width_is_the_slope_at_the_centre() -> None:
    centre = torch.tensor([-1.0, 2.0])
    for least_or_most in secants(centre, centre, centre, (0.0, None)):
        assert least_or_most.tolist() == [0.0, 1.0]
