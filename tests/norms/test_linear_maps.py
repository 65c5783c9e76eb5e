"""Every linear map keeps the contract; compositions know when entries pass through."""

from __future__ import annotations

import pytest
import torch
from contracts.linear_map import MapContract, explicit
from torch.nn import functional as F

from lirpa_lip.errors import ShapeError
from lirpa_lip.norms.linear_map import (
    ComposedMap,
    Conv1dMap,
    Conv2dMap,
    ConvTranspose1dMap,
    ConvTranspose2dMap,
    DenseMap,
    DiagonalMap,
    FunctionMap,
    IdentityMap,
    LinearMap,
    MaskedMap,
    ReshapeMap,
    SumMap,
)


class TestDense(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return DenseMap(torch.randn(5, 7, dtype=dtype))


class TestConv2d(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return Conv2dMap(torch.randn(4, 3, 3, 3, dtype=dtype), (3, 5, 4), padding=1)


class TestConv2dStrideDilationGroups(MapContract):
    """Odd everything: some inputs are read by no window, the axes differ, groups hold two channels each."""

    def make(self, dtype: torch.dtype) -> LinearMap:
        weight = torch.randn(4, 2, 3, 2, dtype=dtype)
        return Conv2dMap(weight, (4, 6, 7), stride=(2, 3), padding=(1, 0), dilation=(1, 2), groups=2)


class TestConv1d(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return Conv1dMap(torch.randn(3, 2, 4, dtype=dtype), (2, 9), stride=2, padding=3)


class TestConvTranspose2d(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        weight = torch.randn(4, 3, 3, 2, dtype=dtype)
        return ConvTranspose2dMap(weight, (4, 3, 2), (2, 3), (1, 0), output_padding=(1, 2), dilation=(1, 1), groups=2)


class TestConvTransposeWithOutputPaddingBeyondStride(MapContract):
    """Output padding below the dilation but not below the stride: the adjoint convolution has more windows."""

    def make(self, dtype: torch.dtype) -> LinearMap:
        return ConvTranspose1dMap(torch.randn(2, 2, 3, dtype=dtype), (2, 4), stride=1, output_padding=2, dilation=3)


class TestDiagonal(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return DiagonalMap(torch.randn(2, 3, dtype=dtype), (2, 3))


class TestDiagonalPerSample(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return DiagonalMap(torch.randn(3, 2, 3, dtype=dtype), (2, 3))


class TestIdentity(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return IdentityMap((2, 3), dtype)


class TestReshape(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return ReshapeMap((2, 3), (3, 1, 2), dtype)


class TestAveragePooling(MapContract):
    has_square = False

    def make(self, dtype: torch.dtype) -> LinearMap:
        return FunctionMap(lambda x: F.avg_pool2d(x, 2), (2, 5, 4), dtype, entries_nonnegative=True)


class TestSlice(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return FunctionMap(lambda x: -2 * x[:, 1:, ::2], (3, 5), dtype, monomial=True)


class TestUpsampling(MapContract):
    """One nonzero in each row, several in a column."""

    def make(self, dtype: torch.dtype) -> LinearMap:
        return FunctionMap(lambda x: F.interpolate(x, scale_factor=2), (2, 2, 3), dtype, monomial=True)


class TestComposed(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        conv = Conv2dMap(torch.randn(2, 1, 2, 2, dtype=dtype), (1, 3, 3))
        scale = DiagonalMap(torch.randn(3, 2, 2, 2, dtype=dtype), (2, 2, 2))
        return ComposedMap([ReshapeMap((2, 2, 2), (8,), dtype), scale, conv])


class TestComposedOfTwoConvolutions(MapContract):
    has_abs = has_square = False

    def make(self, dtype: torch.dtype) -> LinearMap:
        first = Conv2dMap(torch.randn(2, 1, 2, 2, dtype=dtype), (1, 4, 3))
        return ComposedMap([DenseMap(torch.randn(3, 12, dtype=dtype)), ReshapeMap((2, 3, 2), (12,), dtype), first])


class TestSum(MapContract):
    has_abs = has_square = False

    def make(self, dtype: torch.dtype) -> LinearMap:
        conv = Conv2dMap(torch.randn(2, 2, 3, 3, dtype=dtype), (2, 3, 3), padding=1)
        return SumMap([IdentityMap((2, 3, 3), dtype), conv])


class TestMasked(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        dense = DenseMap(torch.randn(4, 5, dtype=dtype))
        return MaskedMap(dense, torch.rand(3, 5, dtype=dtype), (torch.rand(3, 4) > 0.5).to(dtype))


def test_upsampling_before_a_convolution_keeps_no_entries() -> None:
    """Copies of one input meet in one window: products of entries add up, so |AB| is not |A||B|."""
    up = FunctionMap(lambda x: F.interpolate(x, scale_factor=2), (1, 2, 2), torch.float64, monomial=True)
    conv = Conv2dMap(torch.randn(1, 1, 2, 2, dtype=torch.float64), (1, 4, 4))
    assert up.row_monomial and not up.column_monomial
    with pytest.raises(NotImplementedError):
        ComposedMap([conv, up]).square()
    behind = ComposedMap([up, Conv2dMap(torch.randn(1, 1, 2, 2, dtype=torch.float64), (1, 3, 3))])
    torch.testing.assert_close(explicit(behind.square()), explicit(behind).square())


def test_nonnegative_maps_compose() -> None:
    pool = FunctionMap(lambda x: F.avg_pool2d(x, 2), (1, 4, 4), torch.float64, entries_nonnegative=True)
    again = FunctionMap(lambda x: F.avg_pool2d(x, 2), (1, 2, 2), torch.float64, entries_nonnegative=True)
    both = ComposedMap([again, pool])
    assert both.abs() is both


def test_function_map_in_float32_and_under_no_grad() -> None:
    pool = FunctionMap(lambda x: F.avg_pool2d(x, 2), (1, 4, 4))
    with torch.no_grad():
        assert pool.adjoint(torch.ones(2, 1, 2, 2)).shape == (2, 1, 4, 4)
    assert not pool.adjoint(torch.ones(2, 1, 2, 2)).requires_grad


@pytest.mark.parametrize(
    "build",
    [
        lambda: DenseMap(torch.zeros(3)),
        lambda: DenseMap(torch.zeros(0, 3)),
        lambda: Conv2dMap(torch.zeros(2, 3, 3, 3), (4, 8, 8)),
        lambda: Conv2dMap(torch.zeros(2, 3, 9, 9), (3, 4, 4)),
        lambda: Conv2dMap(torch.zeros(2, 3, 3), (3, 8)),
        lambda: Conv2dMap(torch.zeros(2, 3, 3, 3), (3, 8, 8), stride=(1, 2, 3)),
        lambda: ConvTranspose2dMap(torch.zeros(2, 3, 3, 3), (3, 8, 8)),
        lambda: DiagonalMap(torch.zeros(4), (5,)),
        lambda: ReshapeMap((2, 3), (5,)),
        lambda: ComposedMap([]),
        lambda: ComposedMap([DenseMap(torch.zeros(2, 3)), DenseMap(torch.zeros(2, 3))]),
        lambda: ComposedMap([DiagonalMap(torch.zeros(2, 3), (3,)), DiagonalMap(torch.zeros(4, 3), (3,))]),
        lambda: SumMap([DenseMap(torch.zeros(2, 3)), DenseMap(torch.zeros(3, 3))]),
        lambda: MaskedMap(DenseMap(torch.zeros(2, 3)), torch.zeros(4, 2)),
        lambda: FunctionMap(lambda x: x + 1, (3,)),
        lambda: FunctionMap(lambda x: x.sum(0), (3,)),
        lambda: DenseMap(torch.zeros(2, 3)).row_norms(torch.zeros(4, 2)),
    ],
)
def test_wrong_shapes_are_refused(build) -> None:
    with pytest.raises(ShapeError):
        build()


@pytest.mark.parametrize("channels, out, kernel, padding, size", [(4, 4, 3, 1, 9), (5, 3, 4, 2, 8), (3, 2, 1, 0, 6)])
def test_the_adjoint_by_a_turned_kernel(channels, out, kernel, padding, size):
    """In float64 an adjoint may be a convolution too: the transposed one's values, and its gradient."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, channels, kernel, kernel, dtype=torch.float64, generator=generator).requires_grad_()
    conv = Conv2dMap(weight, (channels, size, size), 1, padding)
    assert conv._turned_pays and not conv.to(torch.float32)._turned_pays
    y = torch.randn(2, *conv.out_shape, dtype=torch.float64, generator=generator)
    wanted = F.conv_transpose2d(y, weight, padding=padding)
    torch.testing.assert_close(conv.adjoint(y), wanted)
    start = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    found, expected = (torch.autograd.grad((value * start).sum(), weight)[0] for value in (conv.adjoint(y), wanted))
    torch.testing.assert_close(found, expected)
