"""Planes times coefficients: the layouts (matrix, patches, sparse patches) agree, for shared and for own mixes."""

from __future__ import annotations

import math

import pytest
import torch
from auto_LiRPA.patches import Patches

from lirpa_lip.activations.planes import Plane, Relaxation
from lirpa_lip.wrapping.coefficients import multiply, select_rows

BATCH, CHANNELS, SIDE = 2, 4, 6
# kernel, stride, padding, and the size of the output they give on images of that side
KERNELS = [(3, 1, 1, 6), (3, 1, 0, 4), (2, 2, 0, 3), (4, 2, 1, 3), (5, 1, 3, 8), (6, 1, 0, 1), (1, 1, 0, 6)]
OUT = 3


def patches(kernel: int, stride: int, padding: int, out: int, sparse: bool) -> Patches:
    generator = torch.Generator().manual_seed(kernel)
    shape = [OUT, BATCH, out, out, CHANNELS, kernel, kernel]
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    output_shape = [BATCH, OUT, out, out]
    if not sparse:
        return Patches(values, stride, padding, shape, output_shape=output_shape)
    kept = torch.randperm(OUT * out * out, generator=generator)[: max(2, OUT * out)]
    index = torch.unravel_index(kept, (OUT, out, out))
    values = values[index[0], :, index[1], index[2]]
    return Patches(values, stride, padding, values.shape, output_shape=output_shape, unstable_idx=index)


def random_relaxation(rows: int, seed: int, groups: int) -> Relaxation:
    generator = torch.Generator().manual_seed(seed)

    def values() -> torch.Tensor:
        return torch.rand(rows, BATCH, CHANNELS // groups, SIDE, SIDE, generator=generator, dtype=torch.float64)

    return Relaxation(*(Plane(tuple(values() for _ in range(groups)), values() - 0.5) for _ in range(2)))


def as_matrix(A: Patches) -> torch.Tensor:
    return A.to_matrix((BATCH, CHANNELS, SIDE, SIDE)).transpose(0, 1)  # (rows, batch, C, H, W)


def rows_for_matrix(relaxation: Relaxation, A: Patches) -> Relaxation:
    """The same planes with one row per row of the matrix."""
    shape = tuple(A.output_shape[1:])
    dense = torch.empty(math.prod(shape) if A.unstable_idx is None else len(A.unstable_idx[0]), BATCH)

    def expand(coefficient: torch.Tensor) -> torch.Tensor:
        return select_rows(coefficient, shape, dense, A.unstable_idx)

    return Relaxation(*(Plane(tuple(map(expand, plane.slopes)), expand(plane.bias)) for plane in relaxation))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("own", ["shared", "channel", "neuron"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_patches_are_the_matrix(kernel, sparse, own, groups):
    A = patches(*kernel, sparse)
    shape = tuple(A.output_shape[1:])
    rows = {"shared": 1, "channel": OUT, "neuron": math.prod(shape)}[own]
    planes = [random_relaxation(rows, seed, groups) for seed in range(groups)]

    def chosen(relaxation: Relaxation) -> Relaxation:
        return Relaxation(*(
            Plane(tuple(select_rows(s, shape, A, None) for s in p.slopes), select_rows(p.bias, shape, A, None))
            for p in relaxation
        ))  # fmt: skip

    for side in (0, 1):
        got, bias = multiply(A, [chosen(r) for r in planes], side, groups)
        want, want_bias = multiply(as_matrix(A), [rows_for_matrix(r, A) for r in planes], side, groups)
        assert torch.allclose(as_matrix(got), want, atol=1e-12)
        if not sparse:  # (out_c, batch, out_h, out_w) -> rows
            bias = bias.transpose(0, 1).flatten(1).t()
        assert torch.allclose(bias, want_bias, atol=1e-12)


def test_matrix_product_by_hand():
    """Rows choose the plane by the sign of each entry; sides swap it."""
    A = torch.tensor([[[2.0, -3.0]]])  # 1 row, batch 1, 2 neurons
    below = Plane((torch.tensor([[0.5, 0.25]]),), torch.tensor([[0.0, -1.0]]))
    above = Plane((torch.tensor([[0.75, 1.0]]),), torch.tensor([[1.0, 2.0]]))
    product, bias = multiply(A, [Relaxation(below, above)], 0, 1)
    assert product.tolist() == [[[1.0, -3.0]]] and bias.tolist() == [[2 * 0 - 3 * 2.0]]
    product, bias = multiply(A, [Relaxation(below, above)], 1, 1)
    assert product.tolist() == [[[1.5, -0.75]]] and bias.tolist() == [[2 * 1.0 + 3.0]]


def test_zero_times_infinity_is_zero():
    inf = torch.inf
    plane = Plane((torch.zeros(1, 2),), torch.tensor([[inf, 1.0]]))
    relaxation = Relaxation(plane._replace(bias=-plane.bias), plane)
    A = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[-1.0, 2.0]]])
    _, upper = multiply(A, [relaxation], 1, 1)
    _, lower = multiply(A, [relaxation], 0, 1)
    assert upper.flatten().tolist() == [1.0, inf, inf] and lower.flatten().tolist() == [-1.0, -inf, -inf]


class TestSelectRows:
    shape = (2, 3, 2)

    def mixes(self, groups: int) -> torch.Tensor:
        return torch.arange(groups, dtype=torch.float64).view(groups, 1, 1)

    def test_flat_and_threefold_indices_agree(self):
        flat = torch.tensor([0, 5, 11])
        index = torch.unravel_index(flat, self.shape)
        A = torch.empty(3, 1)
        assert select_rows(self.mixes(12), self.shape, A, flat).flatten().tolist() == [0, 5, 11]
        assert select_rows(self.mixes(12), self.shape, A, index).flatten().tolist() == [0, 5, 11]
        assert select_rows(self.mixes(2), self.shape, A, index).flatten().tolist() == [0, 0, 1]

    def test_unknown_rows_share_the_average(self):
        assert select_rows(self.mixes(12), self.shape, torch.empty(4, 1), None).flatten().tolist() == [5.5]
        each_sample_its_own = torch.zeros(4, 2, dtype=torch.long)
        assert select_rows(self.mixes(12), self.shape, torch.empty(4, 1), each_sample_its_own).numel() == 1
