"""Nearly empty convolutions as sparse matrices: the same operators, from every kind of convolution and mask."""

from __future__ import annotations

import pytest
import torch
from networks.maps import BATCH, BUILDERS, masks, singular_values
from torch import Tensor

from lirpa_lip.norms import conv_sparse, masked_spectral_norm, reduce
from lirpa_lip.norms.conv_sparse import entry_counts, sparse_groups, sparse_pays, sparse_problem
from lirpa_lip.norms.linear_map import Conv2dMap, ConvTranspose2dMap, LinearMap, MaskedMap
from lirpa_lip.norms.problem import Problem, prepare

CONVOLUTIONS = ("conv", "strided", "grouped", "conv1d", "transposed")


def placed(matrices: Tensor, rows: Tensor, columns: Tensor, linear_map: LinearMap) -> Tensor:
    """Matrices of what is kept, ``(B, r, c)``, with their rows and columns back in place; the padding comes last."""
    full = torch.zeros(len(matrices), linear_map.out_numel + 1, linear_map.in_numel + 1, dtype=matrices.dtype)
    for matrix, row, column, place in zip(matrices, rows, columns, full, strict=True):
        place.index_put_((row.unsqueeze(1), column.unsqueeze(0)), matrix, accumulate=True)
    return full


@pytest.mark.parametrize("sides", ["both", "in", "out"])
@pytest.mark.parametrize("dropped", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_entries_are_those_of_the_masked_map(name: str, dropped: float, sides: str) -> None:
    torch.manual_seed(0)
    linear_map = BUILDERS[name](torch.float64)
    mask_in, mask_out = masks(linear_map, dropped, scales=True)
    given = (mask_in if sides != "out" else None, mask_out if sides != "in" else None)
    _, problem = prepare(linear_map, *given)
    found, rows, columns = sparse_problem(problem)
    matrices = found.map.dense()
    full = placed(matrices, rows, columns, linear_map)
    torch.testing.assert_close(full[:, :-1, :-1], MaskedMap(linear_map, *given).dense())
    assert not full[:, -1].any() and not full[:, :, -1].any()

    x = torch.randn(BATCH, found.map.in_numel, dtype=torch.float64)
    torch.testing.assert_close(found.map.forward(x), (matrices @ x.unsqueeze(2)).squeeze(2))
    y = torch.randn(BATCH, found.map.out_numel, dtype=torch.float64)
    torch.testing.assert_close(found.map.adjoint(y), (matrices.mT @ y.unsqueeze(2)).squeeze(2))
    index = torch.tensor([3, 0, 0, 4])
    torch.testing.assert_close(found.map.select(index).dense(), matrices[index])
    torch.testing.assert_close(found.map.to(torch.float32).dense(), matrices.float())


def test_windows_that_a_transposed_convolution_lacks() -> None:
    """The convolution it is the adjoint of may have more outputs than it has inputs."""
    linear_map = ConvTranspose2dMap(torch.randn(2, 3, 2, 2, dtype=torch.float64), (2, 3, 4), stride=1, output_padding=0)
    taller = ConvTranspose2dMap(torch.randn(2, 3, 2, 2, dtype=torch.float64), (2, 3, 4), 2, 0, 1, dilation=2)
    for one in (linear_map, taller):
        mask_in, mask_out = masks(one, 0.5, scales=True)
        found, rows, columns = sparse_problem(prepare(one, mask_in, mask_out)[1])
        full = placed(found.map.dense(), rows, columns, one)
        torch.testing.assert_close(full[:, :-1, :-1], MaskedMap(one, mask_in, mask_out).dense())


def test_many_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    linear_map = BUILDERS["strided"](torch.float64)
    _, problem = prepare(linear_map, *masks(linear_map, 0.6, scales=True))
    whole = sparse_problem(problem)[0].map.dense()
    monkeypatch.setattr(conv_sparse, "CHUNK", 1)
    monkeypatch.setattr(conv_sparse, "CHUNK_SHARE", 0)
    torch.testing.assert_close(sparse_problem(problem)[0].map.dense(), whole, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_entries_are_counted_before_they_are_made(name: str) -> None:
    linear_map = BUILDERS[name](torch.float64)
    _, problem = prepare(linear_map, *masks(linear_map, 0.6, scales=False))
    counts = entry_counts(problem)
    assert int(counts.sum()) == len(sparse_problem(problem)[0].map.rows.values)
    for sample, count in enumerate(counts.tolist()):
        single = problem.select(torch.tensor([sample]))
        assert count == len(sparse_problem(single)[0].map.rows.values)


def nearly_empty(dtype: torch.dtype) -> tuple[Conv2dMap, Tensor, Tensor]:
    """98 % eliminated; one sample has nothing, one a single unit on either side, linked by the kernel's middle."""
    torch.manual_seed(0)
    linear_map = Conv2dMap(torch.randn(12, 8, 3, 3, dtype=dtype), (8, 7, 9), padding=1)
    mask_in, mask_out = (
        (torch.rand(5, *shape) > 0.98).to(dtype) for shape in (linear_map.in_shape, linear_map.out_shape)
    )
    mask_in[1] = 0
    mask_in[3], mask_out[3] = 0, 0
    mask_in[3, 2, 4, 5] = mask_out[3, 7, 4, 5] = 1
    return linear_map, mask_in, mask_out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("certificate", ["estimate", "probabilistic", "deterministic"])
def test_norms_of_nearly_empty_convolutions(certificate: str, dtype: torch.dtype) -> None:
    arguments = nearly_empty(dtype)
    assert sparse_pays(prepare(*arguments)[1])
    exact = singular_values(*arguments)
    result = masked_spectral_norm(*arguments, certificate=certificate, rtol=1e-4, vectors=True)
    assert result.upper[1] == 0
    torch.testing.assert_close(result.upper.double(), exact, rtol=2e-4, atol=1e-12)
    if certificate != "estimate":
        assert (result.upper.double() >= exact * (1 - 1e-15)).all()
    masked = MaskedMap(*arguments).to(torch.float64)
    images = masked.forward(result.right.double()).flatten(1)
    torch.testing.assert_close(images.norm(dim=1), exact, rtol=2e-2, atol=1e-12)


@pytest.mark.parametrize("room", [1, 40, 10**9])
def test_groups_fit_into_memory(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Each sample in one group, in order; a group of more than one sample takes no more than there is room for."""
    arguments = nearly_empty(torch.float64)
    _, problem = prepare(*arguments)
    counts = entry_counts(problem)
    monkeypatch.setattr(conv_sparse, "_room", lambda problem: room)
    groups = sparse_groups(problem)
    assert torch.cat(groups).tolist() == list(range(problem.size))
    assert all(len(group) == 1 or int(counts[group].sum()) <= room for group in groups)
    assert len(groups) == {1: 5, 10**9: 1}.get(room, len(groups))
    monkeypatch.setattr(reduce, "sparse_pays", lambda problem: isinstance(problem.map, Conv2dMap))
    result = masked_spectral_norm(*arguments, certificate="probabilistic", rtol=1e-6, vectors=True)
    torch.testing.assert_close(result.upper, singular_values(*arguments), rtol=2e-6, atol=1e-12)


def test_a_full_convolution_stays_one() -> None:
    linear_map, mask_in, _ = nearly_empty(torch.float32)
    assert not sparse_pays(prepare(linear_map, torch.ones_like(mask_in), None)[1])


def test_a_start_that_is_given_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reduced problem would begin at random, and two steps from there are worth little."""
    linear_map, mask_in, mask_out = nearly_empty(torch.float64)
    best = masked_spectral_norm(linear_map, mask_in, mask_out, certificate="estimate", rtol=1e-9, vectors=True)
    again = masked_spectral_norm(
        linear_map, mask_in, mask_out, certificate="estimate", start=best.right, max_iterations=4
    )
    torch.testing.assert_close(again.upper, best.upper, rtol=1e-9, atol=0)


def test_equal_samples_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing eliminated anywhere, as when a training begins, all samples are one."""
    sizes = []
    inner = Problem.gram_without_last_mask
    monkeypatch.setattr(Problem, "gram_without_last_mask", lambda self, x: (sizes.append(len(x)), inner(self, x))[1])
    linear_map = BUILDERS["conv"](torch.float64)
    ones = torch.ones(7, *linear_map.out_shape, dtype=torch.float64)
    start = torch.randn(7, *linear_map.in_shape, dtype=torch.float64)
    for options in ({}, {"start": start}, {"start": start[:1]}):
        result = masked_spectral_norm(
            linear_map, None, ones, certificate="estimate", rtol=1e-6, vectors=True, **options
        )
        torch.testing.assert_close(result.upper, singular_values(linear_map, None, ones), rtol=1e-5, atol=0)
        assert result.left.shape == (7, *linear_map.out_shape) and result.right.shape == (7, *linear_map.in_shape)
    assert set(sizes) == {1}
    masked_spectral_norm(linear_map, None, ones * torch.arange(1, 8).reshape(-1, 1, 1, 1), certificate="estimate")
    assert 7 in sizes
