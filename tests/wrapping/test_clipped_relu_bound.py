"""Lines around a clipped ReLU: sound for every mix, the edges of the convex hull, exact where the neuron is stable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from lirpa_lip.wrapping.clipped_relu_bound import default_mixes, relax_clipped_relu

INF = float("inf")
NUMBERS = st.one_of(st.floats(-4, 4), st.sampled_from([0.0, 1.0, -1.0, 1e-30, -1e-30, 1e-7, 1e6, -1e6]))
MIXES = st.floats(0, 1)


def column(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([[v]], dtype=torch.float64) for v in values]


def line(plane, z: torch.Tensor) -> torch.Tensor:
    return plane.slopes[0] * z + plane.bias


def clipped(z: torch.Tensor, theta) -> torch.Tensor:
    return torch.minimum(z.clamp(min=0), torch.as_tensor(theta, dtype=z.dtype))


def grid(low: float, high: float, *corners: float) -> torch.Tensor:
    special = torch.tensor([low, high, *(c for c in corners if low <= c <= high)], dtype=torch.float64)
    return torch.cat([torch.linspace(low, high, 101, dtype=torch.float64), special])[None]


@settings(max_examples=400, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS.map(abs), MIXES, MIXES)
def test_sound_for_every_mix(a, b, theta, lower_mix, upper_mix):
    low, high = min(a, b), max(a, b)
    z = grid(low, high, 0.0, theta)
    below, above = relax_clipped_relu(*column(low, high, theta, lower_mix, upper_mix))
    tolerance = 1e-14 * max(abs(low), abs(high), theta, 1)
    assert (line(below, z) <= clipped(z, theta) + tolerance).all()
    assert (line(above, z) >= clipped(z, theta) - tolerance).all()
    assert all(0 <= plane.slopes[0].item() <= 1 for plane in (below, above))


# every case of l, u against 0 and θ = 1 with its free ends: (l, u) -> slopes of the lower line, of the upper line
CASES = {
    "dead": ((-2, -1), {0.0}, {0.0}),
    "saturated": ((1.5, 2), {0.0}, {0.0}),
    "linear": ((0.2, 0.7), {1.0}, {1.0}),
    "lower kink": ((-1, 0.5), {0.0, 1.0}, {0.5 / 1.5}),
    "upper kink": ((0.5, 2), {0.5 / 1.5}, {0.0, 1.0}),
    "both kinks": ((-1, 2), {0.0, 0.5}, {0.0, 0.5}),
    "from zero to threshold": ((0, 1), {1.0}, {1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_ends_of_the_mixes_are_edges_of_the_convex_hull(case):
    (low, high), lower_slopes, upper_slopes = CASES[case]
    z = grid(low, high, 0.0, 1.0)
    found: tuple[set, set] = (set(), set())
    for mix in (0.0, 1.0):
        for side, plane in enumerate(relax_clipped_relu(*column(low, high, 1.0, mix, mix))):
            found[side].add(round(plane.slopes[0].item(), 12))
            gap = (line(plane, z) - clipped(z, 1.0)).abs()
            touched = z[gap < 1e-12]
            assert touched.max() - touched.min() > 0.1, "an edge of the hull meets the function at two points"
    assert found == ({round(s, 12) for s in lower_slopes}, {round(s, 12) for s in upper_slopes})


@pytest.mark.parametrize("case", ["dead", "saturated", "linear", "from zero to threshold"])
def test_exact_where_stable(case):
    low, high = CASES[case][0]
    z = grid(low, high)
    for plane in relax_clipped_relu(*column(low, high, 1.0)):
        assert torch.equal(line(plane, z), clipped(z, 1.0))


@settings(max_examples=100, deadline=None)
@given(st.floats(-3, -1e-3), st.floats(1e-3, 3))
def test_is_the_crown_relaxation_of_relu_below_the_threshold(low, high):
    for mix in (0.0, 0.3, 1.0):
        below, above = relax_clipped_relu(*column(low, high, 5.0, mix, 0.7))
        assert below.slopes[0].item() == mix and below.bias.item() == 0
        assert above.slopes[0].item() == pytest.approx(high / (high - low))
        assert above.bias.item() == pytest.approx(-low * high / (high - low))


@settings(max_examples=100, deadline=None)
@given(st.floats(-3, 0), st.floats(0.1, 3), st.floats(0.01, 2))
def test_default_mixes_have_the_least_area(low, high, theta):
    z = torch.linspace(low, high, 2001, dtype=torch.float64)[None]

    def areas(lower_mix, upper_mix):
        below, above = relax_clipped_relu(*column(low, high, theta), lower_mix, upper_mix)
        return (clipped(z, theta) - line(below, z)).mean().item(), (line(above, z) - clipped(z, theta)).mean().item()

    chosen = areas(*default_mixes(*column(low, high, theta)))
    for mix in (0.0, 0.5, 1.0):
        other = areas(*column(mix, mix))
        assert chosen[0] <= other[0] + 1e-3 * high and chosen[1] <= other[1] + 1e-3 * high


@pytest.mark.parametrize("low, high", [(-INF, INF), (-INF, 0.5), (-INF, 3.0), (0.5, INF), (-2.0, INF), (-INF, -1.0)])
def test_infinite_intervals_give_finite_lines(low, high):
    z = grid(max(low, -1e6), min(high, 1e6), 0.0, 1.0)
    for mix in (0.0, 1.0):
        below, above = relax_clipped_relu(*column(low, high, 1.0, mix, mix))
        assert all(torch.isfinite(v).all() for plane in (below, above) for v in (*plane.slopes, plane.bias))
        assert (line(below, z) <= clipped(z, 1.0)).all() and (line(above, z) >= clipped(z, 1.0)).all()


def test_points_and_extreme_thresholds():
    for point in (-1.0, 0.0, 0.4, 1.0, 2.0):
        for theta in (0.0, 1.0, 1e38):
            for plane in relax_clipped_relu(*column(point, point, theta)):
                assert line(plane, torch.tensor([[point]], dtype=torch.float64)).item() == min(max(point, 0), theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_a_few_ulp(dtype):
    generator = torch.Generator().manual_seed(0)
    ends = (
        torch.randn(2, 1, 20000, generator=generator, dtype=dtype) * torch.tensor([1e-3, 1, 1e3]).repeat(6667)[:20000]
    )
    low, high = ends.amin(0), ends.amax(0)
    theta = torch.rand(1, 20000, generator=generator, dtype=dtype) * 2
    share = torch.rand(50, 20000, generator=generator, dtype=dtype)
    z = torch.minimum(torch.maximum(low + share * (high - low), low), high)
    below, above = relax_clipped_relu(low, high, theta)
    exact = clipped(z.double(), theta.double())
    scale = torch.maximum(low.abs(), high.abs()).double() + theta.double()
    room = 4 * torch.finfo(dtype).eps * scale
    values = [plane.slopes[0].double() * z.double() + plane.bias.double() for plane in (below, above)]
    assert (values[0] <= exact + room).all() and (values[1] >= exact - room).all()


@pytest.mark.parametrize("low, high", [case[0] for case in CASES.values()][:6])
def test_derivatives(low, high):
    inputs = [v.requires_grad_() for v in column(low, high, 1.0)]

    def coefficients(low, high, theta):
        planes = relax_clipped_relu(low, high, theta, *column(0.3, 0.6))
        return torch.cat([v.expand(1, 1) for plane in planes for v in (*plane.slopes, plane.bias)])

    assert gradcheck(coefficients, inputs)
