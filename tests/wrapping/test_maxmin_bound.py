"""Planes around MaxMin and its clipped form: sound for every mix, and together the concave envelope of the maximum."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from lirpa_lip.wrapping.maxmin_bound import (
    BoundClippedMaxMin,
    BoundMaxMin,
    default_clipped_max_mixes,
    default_max_mixes,
    relax_clipped_max,
    relax_max,
    upper_planes_of_max,
)

INF = float("inf")
NUMBERS = st.one_of(st.floats(-4, 4), st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e-7, 1e6, -1e6]))
PAIRS = st.tuples(NUMBERS, NUMBERS).map(sorted)
MIXES = st.lists(st.floats(0, 1), min_size=3, max_size=3)
# nested, overlapping, ordered, touching, degenerate in x, in y, in both
BOXES = [
    (-1, 2, 0, 1), (-1, 1, 0, 3), (2, 3, 0, 1), (0, 1, 1, 2), (0.5, 0.5, 0, 1), (-1, 2, 0.3, 0.3), (1, 1, 1, 1),
    (0, 1, 0, 1), (-2, -1, -4, 3),
]  # fmt: skip


def column(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([[v]], dtype=torch.float64) for v in values)


def points(box, steps: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    lx, ux, ly, uy = (max(min(v, 1e6), -1e6) for v in box)
    x, y = (torch.linspace(a, b, steps, dtype=torch.float64) for a, b in ((lx, ux), (ly, uy)))
    x, y = torch.meshgrid(x, y, indexing="ij")
    tied = (
        torch.linspace(max(lx, ly), min(ux, uy), steps, dtype=torch.float64) if max(lx, ly) <= min(ux, uy) else x[:0, 0]
    )
    return torch.cat([x.flatten(), tied])[None], torch.cat([y.flatten(), tied])[None]


def plane_at(plane, x, y):
    return plane.slopes[0] * x + plane.slopes[1] * y + plane.bias


def assert_between(relaxation, x, y, value, scale):
    tolerance = 1e-14 * max(scale, 1)
    assert (plane_at(relaxation.lower, x, y) <= value + tolerance).all()
    assert (plane_at(relaxation.upper, x, y) >= value - tolerance).all()
    for plane in relaxation:
        assert all(bool((s >= 0).all()) and bool((s <= 1).all()) for s in plane.slopes)


@settings(max_examples=400, deadline=None)
@given(PAIRS, PAIRS, NUMBERS, MIXES)
def test_sound_for_every_mix(x_range, y_range, ceiling, mix):
    box = (*x_range, *y_range)
    x, y = points(box)
    scale = max(map(abs, (*box, ceiling)))
    mixes = column(*mix)
    largest = torch.maximum(x, y)
    assert_between(relax_max(column(*box), *mixes[:2]), x, y, largest, scale)
    clip = relax_clipped_max(column(*box), *column(ceiling), *mixes)
    assert_between(clip, x, y, largest.clamp(max=ceiling), scale)


def envelope(box, x: float, y: float) -> float:
    """Concave envelope of max over the box: the best convex combination of corners, over all triangles of them."""
    lx, ux, ly, uy = box
    best = -INF
    for triangle in itertools.combinations(itertools.product((lx, ux), (ly, uy)), 3):
        matrix = torch.tensor([[*corner, 1.0] for corner in triangle], dtype=torch.float64).T
        weights = torch.linalg.solve(matrix, torch.tensor([x, y, 1.0], dtype=torch.float64))
        if (weights >= -1e-12).all():
            best = max(best, float(weights @ torch.tensor([max(c) for c in triangle], dtype=torch.float64)))
    return best


@pytest.mark.parametrize("box", [b for b in BOXES if b[0] < b[1] and b[2] < b[3]])
def test_upper_planes_are_the_concave_envelope(box):
    x, y = points(box, steps=5)
    best = torch.minimum(*(plane_at(plane, x, y) for plane in upper_planes_of_max(column(*box))))
    for i in range(x.shape[1]):
        assert best[0, i].item() == pytest.approx(envelope(box, x[0, i].item(), y[0, i].item()))


@pytest.mark.parametrize("box", [(2, 3, 0, 1), (0, 1, 2, 3), (1, 2, 0, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
def test_exact_where_the_order_is_known(box, mix):
    x, y = points(box)
    for plane in relax_max(column(*box), *column(mix, mix)):
        assert torch.allclose(plane_at(plane, x, y), torch.maximum(x, y), rtol=0, atol=1e-15)


@pytest.mark.parametrize("box, ceiling", [((1, 2, -5, 5), 1.0), ((-1, 2, 0, 1), -0.5), ((-1, 2, 0, 1), 0.0)])
def test_constant_where_the_clip_is_sure(box, ceiling):
    """One input above the ceiling, or both ranges' lower ends' maximum there, is enough."""
    for plane in relax_clipped_max(column(*box), *column(ceiling, 0.3, 0.3, 0.3)):
        assert [s.item() for s in plane.slopes] == [0, 0] and plane.bias.item() == ceiling


@pytest.mark.parametrize("box", BOXES)
def test_a_ceiling_out_of_reach_changes_nothing(box):
    plain = relax_max(column(*box), *column(0.3, 0.6))
    clip = relax_clipped_max(column(*box), *column(100.0, 0.3, 0.6, 0.0))
    for a, b in zip(plain, clip, strict=True):
        assert torch.equal(torch.stack([*a.slopes, a.bias]), torch.stack([*b.slopes, b.bias]))


@pytest.mark.parametrize("box", BOXES)
def test_defaults_have_the_least_volume_and_the_least_upper_slopes(box):
    x, y = points(box, steps=41)
    x, y = x[:, : 41 * 41], y[:, : 41 * 41]  # the grid without the diagonal
    chosen = relax_max(column(*box), *default_max_mixes(column(*box)))
    for mix in (0.0, 0.5, 1.0):
        other = relax_max(column(*box), *column(mix, mix))
        assert plane_at(chosen.lower, x, y).mean() >= plane_at(other.lower, x, y).mean() - 1e-12
        assert plane_at(chosen.upper, x, y).mean() <= plane_at(other.upper, x, y).mean() + 1e-12
        assert sum(chosen.upper.slopes) <= sum(other.upper.slopes) + 1e-12


def test_defaults_of_the_minimum_are_those_of_the_mirrored_maximum():
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, 50, 8, generator=generator, dtype=torch.float64)
    lower, upper = ends.amin(0), ends.amax(0)
    ceiling, floor = column(0.3, -0.7)
    node = BoundClippedMaxMin(options={})
    mixes = node.default_mix(lower, upper, ceiling, floor)
    mirrored = node.default_mix(-upper, -lower, -floor, -ceiling)
    for a, b in zip(mixes, mirrored[3:] + mirrored[:3], strict=True):
        assert torch.equal(a, b)
    clip_mix = mixes[2].bool()  # keeps max(x, y) where that leaves the smaller area
    (lx, ly), (ux, uy) = lower.chunk(2, dim=1), upper.chunk(2, dim=1)
    assert torch.equal(clip_mix, ceiling > (torch.maximum(lx, ly) + torch.maximum(ux, uy)) / 2)


INFINITE = [
    (-INF, INF, 0, 1), (-INF, 1, 0, 2), (-INF, 1, -INF, 2), (0, INF, 0, INF), (0, INF, -1, 2), (3, INF, 0, 1),
    (-INF, INF, -INF, INF), (-INF, 0, 1, 5), (-INF, INF, 0, INF),
]  # fmt: skip


@pytest.mark.parametrize("box", INFINITE)
def test_infinite_boxes_give_no_nan(box):
    x, y = points(box)
    for mix in (0.0, 0.5, 1.0):
        mixes = column(mix, mix, mix)
        for relaxation, value in (
            (relax_max(column(*box), *mixes[:2]), torch.maximum(x, y)),
            (relax_clipped_max(column(*box), *column(0.5), *mixes), torch.maximum(x, y).clamp(max=0.5)),
        ):
            assert (plane_at(relaxation.lower, x, y) <= value).all()
            assert (plane_at(relaxation.upper, x, y) >= value).all()
        assert torch.isfinite(relax_clipped_max(column(*box), *column(0.5), *mixes).upper.bias).all()
    assert not any(torch.isnan(m).any() for m in default_clipped_max_mixes(column(*box), *column(0.5)))


def test_a_finite_plane_is_found_where_there_is_one():
    for box, exists in (((-INF, 1, -INF, 2), True), ((0, INF, 0, INF), True), ((3, INF, 0, 1), True)):
        bias = relax_max(column(*box), *column(0.5, 0.5)).upper.bias
        assert bool(torch.isfinite(bias).all()) == exists


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=8, max_size=8), st.lists(st.floats(0, 1), min_size=6, max_size=6), NUMBERS, NUMBERS)
def test_minimum_is_the_mirrored_maximum(ends, mix, ceiling, floor):
    """Both outputs of the bound classes, two pairs at once: channels (0, 2) and (1, 3)."""
    ends = torch.tensor(ends, dtype=torch.float64).view(2, 1, 4)
    lower, upper = ends.amin(0), ends.amax(0)
    generator = torch.Generator().manual_seed(0)
    z = lower + (upper - lower) * torch.rand(200, 4, generator=generator, dtype=torch.float64)
    z[0], z[1] = lower, upper
    (x, y), scale = z.chunk(2, dim=1), float(ends.abs().max())
    plain, clip = BoundMaxMin(options={}), BoundClippedMaxMin(options={})
    mixes = list(column(*mix))
    top, bottom = plain.relax(lower, upper, mixes[:4])
    assert_between(top, x, y, torch.maximum(x, y), scale)
    assert_between(bottom, x, y, torch.minimum(x, y), scale)
    top, bottom = clip.relax(lower, upper, mixes, *column(ceiling, floor))
    scale = max(scale, abs(ceiling), abs(floor))
    assert_between(top, x, y, torch.maximum(x, y).clamp(max=ceiling), scale)
    assert_between(bottom, x, y, torch.minimum(x, y).clamp(min=floor), scale)


@pytest.mark.parametrize("box", [(-1, 2, 0, 1), (-1, 1, 0, 3), (2, 3, 0, 1), (-2, -1, -4, 3)])
def test_derivatives(box):
    inputs = [v.requires_grad_() for v in column(*box, 0.7)]

    def coefficients(lx, ux, ly, uy, ceiling):
        planes = relax_clipped_max((lx, ux, ly, uy), ceiling, *column(0.3, 0.6, 0.4))
        return torch.cat([v.expand(1, 1) for plane in planes for v in (*plane.slopes, plane.bias)])

    assert gradcheck(coefficients, inputs)
