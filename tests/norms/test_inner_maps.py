"""The maps that no user makes keep the contract, too: matrices per sample, pairs of a sort, stacked compositions."""

from __future__ import annotations

import pytest
import torch
from contracts.linear_map import MapContract, explicit
from networks.small import networks, propagated, wrap

from lirpa_lip.local.layers import centres, safe_sqrt
from lirpa_lip.local.linearised import StackedMap
from lirpa_lip.network.adapters.pairs import PairMap, rotation
from lirpa_lip.norms.linear_map import LinearMap
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
