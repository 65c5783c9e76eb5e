"""The maps that no user makes keep the contract, too: matrices per sample, pairs of a sort, stacked compositions."""

from __future__ import annotations

import pytest
import torch
from contracts.linear_map import MapContract, explicit
from networks.small import networks, propagated, wrap

from lirpa_lip.local.layers import centres, safe_sqrt
from lirpa_lip.local.linearised import StackedMap
from lirpa_lip.network.adapters.pairs import PairMap, rotation
from lirpa_lip.network.adapters.tournament import WinnersMap
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.linear_map import ComposedMap, ConvMap, DenseMap, FunctionMap, IndexedMap, LinearMap
from lirpa_lip.norms.maps.sparse import CompressedRows, SparseMap, row_starts
from lirpa_lip.norms.reduce import BatchedDenseMap


class TestBatchedDense(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return BatchedDenseMap(torch.randn(3, 5, 4, dtype=dtype))


class TestPairs(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return PairMap((1.0, -2.0, 0.5, 3.0), torch.Size([4, 3]), dtype, torch.device("cpu"))


class TestRotation(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return rotation(torch.Size([6]), dtype, torch.device("cpu"))


class TestOddRotation(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return rotation(torch.Size([5, 2]), dtype, torch.device("cpu"))


class TestWinners(MapContract):
    def make(self, dtype: torch.dtype) -> LinearMap:
        return WinnersMap(torch.Size([5, 2]), 2, dtype, torch.device("cpu"))


class TestIndexed(MapContract):
    """A row that reads one entry twice, one whose terms cancel, one of a single term, and an entry nobody reads."""

    def make(self, dtype: torch.dtype) -> LinearMap:
        index = torch.tensor([[0, 1, 2, 4], [1, 1, 2, 0]])
        values = torch.tensor([[1.0, 2.0, 0.5, -3.0], [-2.0, 1.5, -0.5, 0.0]])
        return IndexedMap(index, values, (3, 2), (2, 2), dtype)


def test_what_a_row_does_not_read_does_not_matter() -> None:
    x = torch.tensor([[[1.0, 2.0], [torch.inf, torch.inf], [4.0, torch.nan]]], dtype=torch.float64)
    found = TestIndexed().make(torch.float64).forward(x).flatten().tolist()
    assert found == [-3.0, 7.0, 0.0, -12.0]


def test_indexed_map_moves_whole() -> None:
    moved = TestIndexed().make(torch.float64).to(torch.float32, "meta")
    assert moved.device.type == "meta" and moved.dtype == torch.float32
    assert moved.adjoint(torch.zeros(2, 2, 2, device="meta")).shape == (2, 3, 2)


@pytest.mark.parametrize("odd", [False, True])
def test_norm_of_an_isometry_is_its_largest_scale(odd: bool) -> None:
    shape = torch.Size([5 if odd else 4, 3])
    double = {"dtype": torch.float64, "device": torch.device("cpu")}
    winners = WinnersMap(shape, 2, **double)
    map_ = ComposedMap([rotation(winners.out_shape, **double), winners])
    ones, scale = torch.ones(2, *map_.in_shape).double(), torch.rand(2, *map_.out_shape).double()
    exact = torch.linalg.svdvals(scale.flatten(1).unsqueeze(2) * map_.dense())[:, 0]
    found = masked_spectral_norm(map_, ones, scale)
    assert found.certificate == "deterministic" and found.iterations == 0
    assert (found.lower <= exact).all() and (exact <= found.upper).all()
    torch.testing.assert_close(found.upper, exact, rtol=1e-12, atol=0)
    part = torch.ones_like(ones)
    part[0, 0], part[1] = 0.0, 0.5  # scales of what it reads: no isometry any more
    exact = torch.linalg.svdvals(scale.flatten(1).unsqueeze(2) * map_.dense() * part.flatten(1).unsqueeze(1))[:, 0]
    found = masked_spectral_norm(map_, part, scale)
    assert (exact <= found.upper).all()
    torch.testing.assert_close(found.upper, exact, rtol=1e-4, atol=0)


def test_few_rows_are_written_out() -> None:
    """Of a map whose entries are not at hand and that is too large to be written out, different rows of each sample."""
    torch.manual_seed(0)
    inner = torch.randn(2100, 2200, dtype=torch.float64)
    map_ = ComposedMap([DenseMap(inner), FunctionMap(lambda x: x.flip(1), [2200], torch.float64)])
    mask = torch.zeros(3, 2100, dtype=torch.float64)
    mask[0, 7], mask[1, [3, 2099, 60]], mask[2, :64] = 0.3, torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64), 1.0
    exact = torch.linalg.svdvals(mask.unsqueeze(2) * inner)[:, 0]
    weights = map_.maps[0].weight.requires_grad_()
    found = masked_spectral_norm(map_, None, mask)
    assert found.certificate == "deterministic"
    assert (found.lower <= exact).all() and (exact <= found.upper).all()
    torch.testing.assert_close(found.upper.detach(), exact, rtol=1e-5, atol=0)
    found.upper.sum().backward()
    left, _, right = torch.linalg.svd(mask[1].unsqueeze(1) * inner, full_matrices=False)
    assert weights.grad is not None
    row = mask[1, 3] * left[3, 0] * right[0]
    others = torch.linalg.svd(mask[2, :64].unsqueeze(1) * inner[:64], full_matrices=False)
    row = row + others[0][3, 0] * others[2][0]
    torch.testing.assert_close(weights.grad[3], row.flip(0).flip(0), rtol=1e-3, atol=1e-3)
    assert masked_spectral_norm(map_, None, mask, certificate="probabilistic").certificate == "probabilistic"


def stacked(dtype: torch.dtype = torch.float64) -> StackedMap:
    net, shape = networks()["residual"]
    bounded, x = wrap(net, shape)
    graph, layers, _ = propagated(bounded, x, 0.3)
    scales = {graph.input: torch.ones_like(x), **{n: safe_sqrt(v.slopes.radius) for n, v in layers.items()}}
    return StackedMap(graph, graph.output, centres(layers), scales, None).detach().to(dtype)


def test_stacked_map_is_the_matrix_of_its_terms() -> None:
    map_ = stacked()
    matrix = explicit(map_)
    assert matrix.shape == (map_.batch_size, map_.out_numel, map_.in_numel)
    y = torch.randn(map_.batch_size, *map_.out_shape, dtype=torch.float64)
    torch.testing.assert_close(map_.adjoint(y), (y.flatten(1).unsqueeze(1) @ matrix).squeeze(1))
    torch.testing.assert_close(map_.dense(), matrix)
    torch.testing.assert_close(explicit(map_.select(torch.tensor([1, 0, 1]))), matrix[[1, 0, 1]])
    assert map_.to(torch.float32).dtype == torch.float32


def test_stacked_map_moves_whole() -> None:
    """Maps, slopes and scales alike: "meta" stands for any device that is not where the map was made."""
    map_ = stacked().to(device="meta")
    assert map_.device.type == "meta"
    assert {t.device.type for t in (*map_.scales.values(), *map_.slopes.values())} == {"meta"}
    y = torch.zeros(map_.batch_size, *map_.out_shape, dtype=torch.float64, device="meta")
    assert map_.adjoint(y).device.type == "meta" and map_.forward(map_.adjoint(y)).shape == y.shape


def sparse(matrix: torch.Tensor) -> SparseMap:
    def compressed(blocks: torch.Tensor) -> CompressedRows:
        height, width = blocks.shape[1:]
        block, row, column = blocks.nonzero().unbind(1)
        starts = row_starts((blocks != 0).sum(2).flatten())
        return CompressedRows(starts, (column + block * width).int(), blocks[block, row, column], height, width)

    return SparseMap(compressed(matrix), compressed(matrix.mT.contiguous()))


@pytest.mark.parametrize("empty", [False, True])
def test_sparse_matrices_per_sample(empty: bool) -> None:
    matrix = torch.randn(3, 4, 5, dtype=torch.float64) * (torch.rand(3, 4, 5) < 0.4)
    if empty:
        matrix[1] = 0
    map_ = sparse(matrix)
    torch.testing.assert_close(map_.dense(), matrix)
    torch.testing.assert_close(explicit(map_), matrix)
    y = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(map_.adjoint(y), (y.unsqueeze(1) @ matrix).squeeze(1))
    torch.testing.assert_close(explicit(map_.select(torch.tensor([2, 1, 2]))), matrix[[2, 1, 2]])
    some = map_.select(torch.tensor([2, 1]))
    torch.testing.assert_close(some.adjoint(y[:2]), (y[:2].unsqueeze(1) @ matrix[[2, 1]]).squeeze(1))
    assert map_.to(torch.float32).forward(torch.ones(3, 5)).dtype == torch.float32


@pytest.mark.parametrize("channels, kernels, stride", [(6, 8, 1), (5, 7, 2), (1, 4, 1)])
@pytest.mark.parametrize("ends", ["left", "right", "both", "twice"])
def test_turns_beside_a_convolution_are_written_into_it(channels, kernels, stride, ends, monkeypatch) -> None:
    """What MaxMin networks are made of: lengths of rows without writing out the rows."""
    torch.manual_seed(0)
    conv = ConvMap(torch.randn(kernels, channels, 3, 3, dtype=torch.float64), (channels, 9, 8), stride, 1)
    after = rotation(conv.out_shape, torch.float64, torch.device("cpu"))
    before = rotation(conv.in_shape, torch.float64, torch.device("cpu"))
    mixed = PairMap((1.0, -2.0, 0.5, 3.0), conv.in_shape, torch.float64, torch.device("cpu"))
    parts = {"left": [after, conv], "right": [conv, before], "both": [after, conv, before]}
    composed = ComposedMap(parts.get(ends, [after, conv, before, mixed]))
    scale = torch.rand(3, *conv.in_shape, dtype=torch.float64)
    matrix = explicit(composed)
    monkeypatch.delattr(LinearMap, "_row_squares_by_chunks")
    expected = (matrix * scale.flatten(1).unsqueeze(1)).norm(dim=2)
    torch.testing.assert_close(composed.row_norms(scale).flatten(1), expected)
    torch.testing.assert_close(composed.row_norms().flatten(1), matrix.norm(dim=2))


def test_turns_beside_a_grouped_convolution_are_left_alone() -> None:
    conv = ConvMap(torch.randn(4, 2, 3, 3, dtype=torch.float64), (4, 5, 5), 1, 1, groups=2)
    composed = ComposedMap([rotation(conv.out_shape, torch.float64, torch.device("cpu")), conv])
    torch.testing.assert_close(composed.row_norms().flatten(1), explicit(composed).norm(dim=2))
