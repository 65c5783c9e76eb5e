"""Inverse functions inside their domains against dense sampling, and refused at the ends."""

from __future__ import annotations

import math

import pytest
import torch

from lirpa_lip.activations import inverse_functions as inverse
from lirpa_lip.activations.lines import relaxations

DOMAINS = {
    "arc sine": (inverse.arc_sine, (-1.0, 1.0)),
    "arc cosine": (inverse.arc_cosine, (-1.0, 1.0)),
    "area cosine": (inverse.area_cosine, (1.0, 4.0)),
    "area tangent": (inverse.area_tangent, (-1.0, 1.0)),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_ranges_slopes_and_lines(name):
    make, (start, end) = DOMAINS[name]
    record, generator = make(), torch.Generator().manual_seed(0)
    share = torch.rand(200, 2, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    ends = start + (end - start) * share
    lower, upper = ends.amin(1), ends.amax(1)
    points = lower + torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1) * (upper - lower)
    values, slopes = record.value(points), record.derivative(points)
    low, high = record.interval(lower, upper)
    assert bool(((values >= low - 1e-12) & (values <= high + 1e-12)).all())
    found = record.slope_range(lower, upper)
    assert bool(((slopes >= found.low) & (slopes <= found.high)).all())
    secants = (values[1:] - values[:-1]) / (points[1:] - points[:-1]).clamp(min=1e-300)
    noise = 1e-9 * (1 + found.magnitude)
    assert bool(((secants >= found.low - noise) & (secants <= found.high + noise)).all())
    for line in relaxations(record, lower, upper):
        below, above = line.lower, line.upper
        assert bool((below.slopes[0] * points + below.bias <= values + 1e-9).all())
        assert bool((above.slopes[0] * points + above.bias >= values - 1e-9).all())


@pytest.mark.parametrize("name", DOMAINS)
def test_no_bound_at_an_end(name):
    make, (start, _) = DOMAINS[name]
    record, lower, upper = make(), torch.tensor([start]), torch.tensor([start + 0.5])
    assert "between" in record.outside(lower, upper) or "above" in record.outside(lower, upper)
    low, high = record.interval(lower, upper)
    assert low.item() == -math.inf and high.item() == math.inf
    slopes = record.slope_range(lower, upper)
    assert slopes.low.item() == -math.inf and slopes.high.item() == math.inf
