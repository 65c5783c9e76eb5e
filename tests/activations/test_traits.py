"""Every activation's record against dense sampling in float64: intervals, slopes, secants, deviations, pieces.

To test another activation add one row to ``ACTIVATIONS``: the record and PyTorch's own function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.activations import curved, periodic
from lirpa_lip.activations import inverse_functions as inverse
from lirpa_lip.activations import kinked_functions as pl
from lirpa_lip.activations import smooth_functions as smooth
from lirpa_lip.activations.base import Activation
from lirpa_lip.activations.lines import blend_three, relaxations

SAMPLES = 401


class Row(NamedTuple):
    record: Activation
    reference: Callable[[Tensor], Tensor]
    kinks: tuple[float, ...] = ()
    widest: float = 1e3  # beyond it values overflow


def _sorted_pair(z: Tensor) -> Tensor:
    return torch.cat([z[:, :1], z[:, 1:].abs()], dim=1)


ACTIVATIONS: dict[str, Row] = {
    "relu": Row(pl.relu(), torch.relu, (0,), 1e6),
    "leaky relu": Row(pl.leaky_relu(0.1), lambda z: F.leaky_relu(z, 0.1), (0,), 1e6),
    "leaky relu falling": Row(pl.leaky_relu(-0.7), lambda z: F.leaky_relu(z, -0.7), (0,)),
    "leaky relu steep": Row(pl.leaky_relu(torch.tensor(2.5)), lambda z: F.leaky_relu(z, 2.5), (0,)),
    "abs": Row(pl.absolute(), torch.abs, (0,), 1e6),
    "clip": Row(pl.clip(-0.5, 0.75), lambda z: z.clamp(-0.5, 0.75), (-0.5, 0.75), 1e6),
    "clip to a point": Row(pl.clip(0.25, 0.25), lambda z: z.clamp(0.25, 0.25), (0.25,)),
    "clip below": Row(pl.clip(low=-0.2), lambda z: z.clamp(min=-0.2), (-0.2,)),
    "clip above": Row(pl.clip(high=0.3), lambda z: z.clamp(max=0.3), (0.3,)),
    "relu6": Row(pl.clip(0.0, 6.0), F.relu6, (0, 6)),
    # PyTorch's own sixth is one in float32
    "hard sigmoid": Row(pl.hard_sigmoid(1 / 6, 0.5), lambda z: (z / 6 + 0.5).clamp(0, 1), (-3, 3)),
    "sigmoid": Row(smooth.sigmoid(), torch.sigmoid, (0,)),
    "tanh": Row(smooth.tanh(), torch.tanh, (0,)),
    "softplus": Row(smooth.softplus(), lambda z: F.softplus(z, threshold=700)),
    "softplus beta": Row(smooth.softplus(3.0), lambda z: F.softplus(z, beta=3.0, threshold=700)),
    "elu": Row(smooth.elu(), F.elu, (0,)),
    "elu small alpha": Row(smooth.elu(0.3), lambda z: F.elu(z, 0.3), (0,)),
    "elu large alpha": Row(smooth.elu(2.0), lambda z: F.elu(z, 2.0), (0,)),
    "selu": Row(smooth.selu(), F.selu, (0,)),
    "silu": Row(smooth.silu(), F.silu, (smooth.SILU_MINIMUM, -smooth.SILU_INFLECTION, smooth.SILU_INFLECTION)),
    "gelu": Row(smooth.gelu(), F.gelu, (smooth.GELU_MINIMUM, -math.sqrt(2), math.sqrt(2))),
    "hard swish": Row(smooth.hard_swish(), lambda z: z * (z / 6 + 0.5).clamp(0, 1), (-3, -1.5, 3)),
    "erf": Row(smooth.erf(), torch.erf, (0,)),
    "exp": Row(smooth.exp(), torch.exp, widest=20),
    "atan": Row(smooth.arc_tangent(), torch.atan, (0,)),
    "area sine": Row(inverse.area_sine(), torch.asinh, (0,)),
    "softsign": Row(smooth.softsign(), F.softsign, (0,)),
    "log sigmoid": Row(smooth.log_sigmoid(), F.logsigmoid),
    "log cosh": Row(smooth.log_cosh(), lambda z: 2**0.5 * torch.log(2 * torch.cosh(z / 2**0.5)), (0,), 400),
    "mish": Row(smooth.mish(), F.mish, (smooth.MISH_MINIMUM, *smooth.MISH_INFLECTIONS)),
    "gelu by tanh": Row(
        smooth.gelu_tanh(),
        lambda z: F.gelu(z, approximate="tanh"),
        (smooth.GELU_TANH_MINIMUM, -smooth.GELU_TANH_INFLECTION, smooth.GELU_TANH_INFLECTION),
    ),
    "sine": Row(periodic.sine(), torch.sin, (-math.pi / 2, 0, math.pi / 2, 3 * math.pi), 50),
    "cosine": Row(periodic.cosine(), torch.cos, (-math.pi / 2, 0, math.pi / 2, 3 * math.pi), 50),
    "square": Row(curved.square(), torch.square, (0,), 1e3),
    "fourth power": Row(curved.power(4), lambda z: z**4, (0,), 50),
    "cube": Row(curved.power(3), lambda z: z**3, (0,), 50),
}
ROWS = pytest.mark.parametrize("row", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())


def intervals(row: Row) -> tuple[Tensor, Tensor]:
    """Fixed intervals: around, beside and at every kink, points, and huge ones; ``(count, 1)`` each."""
    marks = sorted({-2.0, -0.3, 0.0, 0.4, 2.5, *row.kinks})
    ends = sorted({m + d for m in marks for d in (-1.0, -1e-9, 0.0, 1e-9, 0.7)} | {-row.widest, row.widest})
    pairs = [(a, b) for a in ends for b in ends if a <= b]
    lower, upper = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return lower.unsqueeze(1), upper.unsqueeze(1)


def samples(lower: Tensor, upper: Tensor, kinks: tuple[float, ...] = ()) -> Tensor:
    """Points of every interval, its ends, and the kinks inside, ``(samples, *shape)``."""
    t = torch.linspace(0, 1, SAMPLES, dtype=lower.dtype).reshape(-1, *[1] * lower.ndim)
    inner = lower + t * (upper - lower)
    at = [torch.minimum(torch.maximum(torch.full_like(lower, k), lower), upper).unsqueeze(0) for k in kinks]
    return torch.cat([torch.minimum(inner, upper), upper.unsqueeze(0), *at])


def slack(*values: Tensor) -> Tensor:
    """What rounding in float64 may cost."""
    return 1e-13 * (1 + sum(v.abs() for v in values))


def check_interval(row: Row, lower: Tensor, upper: Tensor) -> None:
    z = samples(lower, upper, row.kinks)
    values = row.reference(z)
    low, high = row.record.interval(lower, upper)
    tolerance = slack(low, high)
    assert (low <= values.amin(0) + tolerance).all() and (high >= values.amax(0) - tolerance).all()
    # the range is exact: both ends are reached, up to what the samples miss
    reach = 2 * (values[1:] - values[:-1]).abs()[: SAMPLES - 1].amax(0) + tolerance
    assert (low >= values.amin(0) - reach).all() and (high <= values.amax(0) + reach).all()


def check_slopes(row: Row, lower: Tensor, upper: Tensor) -> None:
    z = samples(lower, upper, row.kinks).sort(dim=0).values
    found = row.record.slope_range(lower, upper)
    closed = row.record.slope_range(lower, upper, closed=True)
    step = z[1:] - z[:-1]
    values = row.reference(z)
    rise = values[1:] - values[:-1]
    noise = slack(values[1:], values[:-1], found.low * z[1:], found.high * z[1:])
    assert (rise >= found.low * step - noise).all() and (rise <= found.high * step + noise).all()
    assert (found.low <= found.high).all()
    assert (closed.low <= found.low).all() and (closed.high >= found.high).all()
    # and not much wider, where no kink is so near an end that samples miss what lies between
    apart = torch.ones_like(lower, dtype=torch.bool)
    for kink in row.kinks:
        apart &= ((lower - kink).abs() > 0.1) & ((upper - kink).abs() > 0.1)
    wide = apart & (upper - lower > 0.05) & (upper - lower < 10)
    secants = torch.where(step > 1e-5, rise / step.clamp(min=1e-5), math.nan)
    least, most = secants.nan_to_num(math.inf).amin(0), secants.nan_to_num(-math.inf).amax(0)
    assert (found.low >= least - 0.2 - 0.1 * least.abs())[wide].all()
    assert (found.high <= most + 0.2 + 0.1 * most.abs())[wide].all()


def check_about_anchor(row: Row, anchor: Tensor, lower: Tensor, upper: Tensor) -> None:
    z = samples(lower, upper, row.kinks)
    secants = row.record.secant_range(anchor, lower, upper)
    whole = row.record.slope_range(lower, upper)
    assert (secants.low >= whole.low).all() and (secants.high <= whole.high).all()
    assert (secants.low <= secants.high).all()
    step, rise = z - anchor, row.reference(z) - row.reference(anchor)
    ends = torch.stack([secants.low * step, secants.high * step])
    noise = slack(row.reference(z), row.reference(anchor), ends[0], ends[1])
    assert (rise >= ends.amin(0) - noise).all() and (rise <= ends.amax(0) + noise).all()
    for slope in (secants.centre, secants.low, torch.full_like(anchor, 0.4)):
        low, high = row.record.deviation_range(slope, anchor, lower, upper, secants)
        deviation = rise - slope * step
        noise = slack(row.reference(z), row.reference(anchor), slope * step, low, high) * 4
        assert (deviation >= low - noise).all() and (deviation <= high + noise).all()
        assert (low <= 0).all() and (high >= 0).all()
        if isinstance(row.record, pl.PiecewiseLinear):  # exact, for any slope
            inside = (lower < anchor) & (anchor < upper)
            missed = (deviation[1:SAMPLES] - deviation[: SAMPLES - 1]).abs().amax(0) + noise.amax(0)
            assert (low >= deviation.amin(0) - missed)[inside].all()
            assert (high <= deviation.amax(0) + missed)[inside].all()


def check_pieces(row: Row, anchor: Tensor, lower: Tensor, upper: Tensor) -> None:
    z = samples(lower, upper, row.kinks)
    secants = row.record.secant_range(anchor, lower, upper)
    step, rise = z - anchor, row.reference(z) - row.reference(anchor)
    heights = torch.full_like(rise, -math.inf), torch.full_like(rise, -math.inf)
    noise = slack(row.reference(z), row.reference(anchor))
    for piece in row.record.pieces(anchor, lower, upper, secants):
        near = 1e-15 * (1 + z.abs() + anchor.abs())
        here = (step >= piece.low - near) & (step <= piece.high + near)
        line = piece.slope * step + piece.offset
        noise = noise + slack(piece.slope * step, piece.offset)
        heights = tuple(torch.where(here, torch.maximum(h, s * line), h) for h, s in zip(heights, (1, -1), strict=True))
    assert (rise <= heights[0] + noise).all() and (-rise <= heights[1] + noise).all()


def check_lines(row: Row, lower: Tensor, upper: Tensor) -> None:
    z = samples(lower, upper, row.kinks)
    values = row.reference(z)
    three = relaxations(row.record, lower, upper)
    for mix in (0.0, 0.3, 0.5, 0.9, 1.0):
        for side, sign in ((0, 1), (1, -1)):
            plane = blend_three(*(r[side] for r in three), torch.full_like(lower, mix))
            line = plane.slopes[0] * z + plane.bias
            noise = slack(values, plane.slopes[0] * z, plane.bias)
            assert (sign * (values - line) >= -noise).all()


def check_slope_lines(row: Row, lower: Tensor, upper: Tensor) -> None:
    """Lines around the derivative hold it, against autograd."""
    slopes = row.record.slope_range(lower, upper, closed=True)
    z = samples(lower, upper).requires_grad_()
    for found in row.record.slope_lines(lower, upper, slopes):
        (derivative,) = torch.autograd.grad(row.reference(z).sum(), z)
        above, below = found.high_slope * z + found.high_offset, found.low_slope * z + found.low_offset
        noise = slack(found.high_slope * z, found.low_slope * z, derivative)
        assert (derivative <= above + noise).all() and (derivative >= below - noise).all()


def check_all(row: Row, lower: Tensor, upper: Tensor, share: Tensor) -> None:
    anchor = torch.minimum(torch.maximum(torch.lerp(lower, upper, share), lower), upper)
    check_interval(row, lower, upper)
    check_slopes(row, lower, upper)
    check_about_anchor(row, anchor, lower, upper)
    check_pieces(row, anchor, lower, upper)
    check_lines(row, lower, upper)
    check_slope_lines(row, lower, upper)


@ROWS
def test_value(row):
    z = torch.cat([torch.linspace(-8, 8, 999), torch.tensor([*map(float, row.kinks), -row.widest, row.widest])])
    z = z.double().unsqueeze(0)
    torch.testing.assert_close(row.record.value(z), row.reference(z), rtol=1e-12, atol=1e-12)


@ROWS
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["anchor low", "anchor centre", "anchor high"])
def test_chosen_intervals(row, share):
    lower, upper = intervals(row)
    check_all(row, lower, upper, torch.full_like(lower, share))


@ROWS
@pytest.mark.parametrize("anchored", [0, -1])
def test_anchor_on_a_kink(row, anchored):
    if not row.kinks:
        pytest.skip("it has none")
    kink = torch.full((4, 1), float(row.kinks[anchored]), dtype=torch.float64)
    width = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 2.0], [0.0, 0.0]], dtype=torch.float64)
    lower, upper = kink - width[:, :1], kink + width[:, 1:]
    check_about_anchor(row, kink, lower, upper)
    check_pieces(row, kink, lower, upper)


@ROWS
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_random_intervals(row, data):
    number = st.floats(-min(row.widest, 50), min(row.widest, 50), width=32)
    ends = data.draw(st.lists(st.tuples(number, number, st.floats(0, 1)), min_size=1, max_size=6))
    a, b, share = torch.tensor(ends, dtype=torch.float64).unsqueeze(2).unbind(1)
    check_all(row, torch.minimum(a, b), torch.maximum(a, b), share)


@ROWS
def test_degenerate_interval_has_the_slopes_at_its_point(row):
    z = torch.tensor([-1.7, -0.9, 0.1, 0.55, 4.1], dtype=torch.float64).unsqueeze(1)
    found = row.record.slope_range(z, z)
    h = 1e-6
    slope = (row.reference(z + h) - row.reference(z - h)) / (2 * h)
    torch.testing.assert_close(found.centre, slope, rtol=1e-6, atol=1e-6)
    assert (found.radius <= 1e-12).all()
    if row.kinks and isinstance(row.record, pl.PiecewiseLinear):
        kink = torch.tensor(row.kinks, dtype=torch.float64).unsqueeze(1)
        at = row.record.slope_range(kink, kink)
        left, right = ((row.reference(kink + s * h) - row.reference(kink)) / (s * h) for s in (-1, 1))
        assert (at.low <= torch.minimum(left, right) + 1e-6).all()
        assert (at.high >= torch.maximum(left, right) - 1e-6).all()


def test_open_interval_does_not_see_past_its_ends():
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    relu = pl.relu()
    assert relu.slope_range(-one, zero).eliminated.all() and relu.slope_range(zero, one).low.item() == 1
    assert relu.slope_range(-one, zero, closed=True).high.item() == 1
    assert relu.slope_range(zero, one, closed=True).low.item() == 0
    clip = pl.clip(-0.5, 0.5)
    assert clip.slope_range(0.5 * one, one).eliminated.all() and clip.slope_range(-0.5 * one, 0.5 * one).stable.all()


def test_relu_and_hardtanh_lines_are_those_of_the_convex_hull():
    lower, upper = torch.tensor([[-1.0], [-3.0], [-2.0]]).double(), torch.tensor([[2.0], [1.0], [2.0]]).double()
    left, best, right = relaxations(pl.relu(), lower, upper)
    torch.testing.assert_close(best.upper.slopes[0], upper / (upper - lower))
    torch.testing.assert_close(best.upper.bias, -lower * upper / (upper - lower))
    assert best.lower.slopes[0][:2].flatten().tolist() == [1, 0]  # the smaller area
    assert (left.lower.slopes[0] == 0).all() and (right.lower.slopes[0] == 1).all()  # the whole range for α
    clip = relaxations(pl.clip(-1.0, 1.0), lower[2:], upper[2:])
    torch.testing.assert_close(clip[2].lower.slopes[0], torch.tensor([[2 / 3]]).double())  # from (-1, -1) to (2, 1)
    torch.testing.assert_close(clip[0].upper.slopes[0], torch.tensor([[2 / 3]]).double())


def test_unbounded_intervals_have_constant_lines():
    inf = torch.tensor([[math.inf]])
    for record, low, high in ((pl.relu(), 0, math.inf), (pl.clip(-1.0, 2.0), -1, 2), (smooth.sigmoid(), 0, 1)):
        best = relaxations(record, -inf, inf)[1]
        assert best.lower.slopes[0].item() == best.upper.slopes[0].item() == 0
        assert best.lower.bias.item() == low and best.upper.bias.item() == high


def test_thresholds_and_slopes_get_gradients():
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    record = pl.PiecewiseLinear([0.0, theta], [0.0, 1.0, 0.0], 0.0)
    assert record.parameters() == (theta,)
    lower, upper = torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double()
    relaxation = relaxations(record, lower, upper)[1]
    (gradient,) = torch.autograd.grad(relaxation.upper.bias.sum() + relaxation.upper.slopes[0].sum(), theta)
    assert gradient.abs() > 0


def test_a_wrong_record_is_found():
    """The checks can fail: a minimum in the wrong place, slopes that end too early."""
    wrong = smooth.Smooth(F.silu, smooth.silu().derivative, [0.0], [-smooth.SILU_INFLECTION, smooth.SILU_INFLECTION])
    lower, upper = torch.tensor([[-4.0]]).double(), torch.tensor([[0.5]]).double()
    with pytest.raises(AssertionError):
        check_interval(Row(wrong, F.silu), lower, upper)
    flat = smooth.Smooth(torch.tanh, lambda z: 1 - torch.tanh(z) ** 2)
    with pytest.raises(AssertionError):
        check_slopes(Row(flat, torch.tanh), -upper, 2 * upper)
