"""Eliminated rows and columns dropped: a dense map as a small matrix per sample, a convolution as a sparse one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lirpa_lip.norms.conv_sparse import sparse_groups, sparse_pays, sparse_problem
from lirpa_lip.norms.linear_map import DenseMap, LinearMap
from lirpa_lip.norms.maps.base import TensorFn
from lirpa_lip.norms.powers import power_of_two
from lirpa_lip.norms.problem import Problem
from lirpa_lip.norms.result import NormResult, Want, combined

#: Elements of one group of padded matrices (64 MiB in float64).
GROUP_ELEMENTS = 1 << 23

#: Smaller side up to which a map without entries is written out: fewer applications than a Lanczos run takes.
SMALL_SIDE = 64

#: A matrix per sample is read once per application, a shared map once per batch: it must be smaller by this factor.
WORTHWHILE = 30


class BatchedDenseMap(LinearMap):
    """A matrix per sample.

    Args:
        weight: ``(B, out, in)``.
    """

    cheap_entries = True

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.batch_size = weight, weight.shape[0]
        self.out_shape, self.in_shape = weight.shape[1:2], weight.shape[2:3]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.unsqueeze(2)).squeeze(2)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y.unsqueeze(1) @ self.weight).squeeze(1)

    def rebuild(self, shared: TensorFn, per_sample: TensorFn) -> BatchedDenseMap:
        return BatchedDenseMap(per_sample(self.weight))

    def dense(self) -> Tensor:
        return self.weight

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.weight[0][rows][:, columns]

    def abs(self) -> BatchedDenseMap:
        return BatchedDenseMap(self.weight.abs())

    def square(self) -> BatchedDenseMap:
        return BatchedDenseMap(self.weight.square())


@dataclass(frozen=True)
class Reduced:
    """Some samples of a problem, as matrices padded with zeros to a common shape.

    Attributes:
        index: ``(g,)``, positions of the samples in the problem.
        problem: the same operators on a map per sample, without masks: the masks are multiplied in.
        rows, columns: ``(g, r)``, ``(g, c)``, flat indices kept; padded with the numel of that side.
    """

    index: Tensor
    problem: Problem
    rows: Tensor
    columns: Tensor

    def expand(self, vector: Tensor | None, index: Tensor, shape: torch.Size) -> Tensor | None:
        """A vector of the reduced space, ``(g, r or c)``, in the full one, ``(g, *shape)``."""
        if vector is None:
            return None
        numel = shape.numel()
        full = vector.new_zeros(len(vector), numel + 1)
        return full.scatter_(1, index, vector)[:, :numel].reshape(-1, *shape)


def written_out(problem: Problem) -> Problem:
    """The problem on a dense map, by as many applications of the map as its smaller side has elements."""
    matrix = problem.map.dense()
    written = DenseMap(matrix) if problem.map.batch_size is None else BatchedDenseMap(matrix)
    masks = [None if mask is None else mask.flatten(1) for mask in (problem.mask_in, problem.mask_out)]
    return Problem(written, problem.size, masks[0], masks[1])


def few_rows(problem: Problem) -> bool:
    """Whether so few rows are left in every sample that applying the adjoint to each costs less than a Lanczos run."""
    return problem.mask_out is not None and int(active_counts(problem)[0].max()) <= SMALL_SIDE


def by_rows(problem: Problem, solver: Callable[[Problem, Want], NormResult], want: Want) -> NormResult:
    """Solve on the rows that are left, written out by the adjoint, in groups of samples; see `few_rows`."""
    linear_map, shape = problem.map, problem.map.out_shape
    assert problem.mask_out is not None
    scale = problem.mask_out.flatten(1)
    most = max(1, int(active_counts(problem)[0].max()))
    rows = (scale != 0).to(torch.int8).topk(most, dim=1).indices
    together = max(1, GROUP_ELEMENTS // (most * max(linear_map.in_numel, linear_map.out_numel)))
    parts, indices = [], list(torch.arange(problem.size, device=linear_map.device).split(together))
    for index in indices:
        row = rows[index]
        basis = torch.zeros(len(index), most, shape.numel(), dtype=linear_map.dtype, device=linear_map.device)
        basis.scatter_(2, row.unsqueeze(2), scale[index].gather(1, row).unsqueeze(2))
        of_each = linear_map.select(index.repeat_interleave(most)).adjoint(basis.reshape(-1, *shape))
        matrix = of_each.reshape(len(index), most, -1)
        if problem.mask_in is not None:
            matrix = matrix * problem.mask_in[index].flatten(1).unsqueeze(1)
        reduced = Reduced(index, Problem(BatchedDenseMap(matrix), len(index)), row, row)
        found = solver(reduced.problem, want)
        left, right = reduced.expand(found.left, row, shape), found.right
        right = None if right is None else right.reshape(-1, *linear_map.in_shape)
        # estimates leave traces on what is eliminated
        left, right = (
            v if v is None or mask is None else torch.where(mask[index] != 0, v, 0.0)
            for v, mask in ((left, problem.mask_out), (right, problem.mask_in))
        )
        parts.append(replace(found, left=left, right=right))
    return combined(parts, indices, problem.size)


def reduction_pays(problem: Problem) -> bool:
    """Whether matrices without the eliminated rows and columns are so small that iterating on them is faster."""
    if sparse_pays(problem):
        return True
    if not isinstance(problem.map, DenseMap):
        return False
    rows, columns = active_counts(problem)
    return int((rows * columns).sum()) * WORTHWHILE <= problem.map.multiply_adds * problem.size


def by_reduction(problem: Problem, solver: Callable[[Problem, Want], NormResult], want: Want) -> NormResult:
    """Solve group by group on the matrices; put values and vectors back in their places.

    Samples with nothing left have the norm 0, exactly. It is for problems whose `reduction_pays`. Where vectors are
    wanted later, nothing is kept of the matrices: they are made, and solved, once more.
    """
    if want is Want.LATER:
        kept = problem.bare()
        found = by_reduction(problem, solver, Want.NOTHING)
        return replace(found, recall=lambda: by_reduction(kept.bare(), solver, Want.NOW).vectors())
    parts, indices = [], []
    for group in reduced_groups(problem) if isinstance(problem.map, DenseMap) else _sparse(problem):
        found = solver(group.problem, want)
        left = group.expand(found.left, group.rows, problem.map.out_shape)
        right = group.expand(found.right, group.columns, problem.map.in_shape)
        parts.append(replace(found, left=left, right=right))
        indices.append(group.index)
        del group  # before the next one is made: a group may take all the memory there is to take
    return combined(parts, indices, problem.size)


def _sparse(problem: Problem) -> Iterator[Reduced]:
    for index in sparse_groups(problem):
        yield Reduced(index, *sparse_problem(problem if len(index) == problem.size else problem.select(index)))


def active_counts(problem: Problem) -> tuple[Tensor, Tensor]:
    """Numbers of rows and of columns that are not masked, ``(B,)`` each, on the CPU."""

    def count(mask: Tensor | None, numel: int) -> Tensor:
        if mask is None:
            return torch.full((problem.size,), numel)
        return (mask.flatten(1) != 0).sum(1).cpu()

    return count(problem.mask_out, problem.map.out_numel), count(problem.mask_in, problem.map.in_numel)


def reduced_groups(problem: Problem) -> Iterator[Reduced]:
    """The samples in groups of similar size, smallest first; samples with nothing left are in no group."""
    rows, columns = active_counts(problem)
    order = torch.argsort(rows * columns)
    order = order[(rows * columns)[order] > 0]
    while len(order):
        sizes = torch.cummax(rows[order], 0).values * torch.cummax(columns[order], 0).values
        total = sizes * torch.arange(1, len(order) + 1)
        # A group may pad its smallest matrix to at most twice its size.
        small_enough = (total <= GROUP_ELEMENTS) & (sizes <= 2 * sizes[0] + 4096)
        taken = max(1, int(small_enough.long().cumprod(0).sum()))
        group, order = order[:taken], order[taken:]
        yield _gather(problem, group, int(rows[group].max()), int(columns[group].max()))


def _gather(problem: Problem, group: Tensor, height: int, width: int) -> Reduced:
    linear_map = problem.map
    matrices = torch.zeros(len(group), height, width, dtype=linear_map.dtype, device=linear_map.device)
    rows = torch.full((len(group), height), linear_map.out_numel, device=linear_map.device)
    columns = torch.full((len(group), width), linear_map.in_numel, device=linear_map.device)
    for slot, sample in enumerate(group.tolist()):
        one = problem.select(torch.tensor([sample], device=linear_map.device))
        row = _kept(one.mask_out, linear_map.out_numel, linear_map.device)
        column = _kept(one.mask_in, linear_map.in_numel, linear_map.device)
        matrix = one.map.entries(row, column)
        if one.mask_out is not None:
            matrix = matrix * one.mask_out.flatten()[row].unsqueeze(1)
        if one.mask_in is not None:
            matrix = matrix * one.mask_in.flatten()[column]
        matrices[slot, : len(row), : len(column)] = matrix
        rows[slot, : len(row)], columns[slot, : len(column)] = row, column
    group = group.to(linear_map.device)
    return Reduced(group, Problem(BatchedDenseMap(matrices), len(group)), rows, columns)


def _kept(mask: Tensor | None, numel: int, device: torch.device) -> Tensor:
    return torch.arange(numel, device=device) if mask is None else mask.flatten().nonzero().squeeze(1)


def fitted_matrix(problem: Problem) -> tuple[Reduced, int] | None:
    """One sample's masked matrix M as ``M / 2^k`` with entries near one, and k, whatever its factors' exponents are.

    ``None`` where entries are not at hand or too many.

    Args:
        problem: of one sample, in float64.
    """
    if not problem.map.cheap_entries:
        return None
    device = problem.map.device
    row = _kept(problem.mask_out, problem.map.out_numel, device)
    column = _kept(problem.mask_in, problem.map.in_numel, device)
    if len(row) * len(column) > GROUP_ELEMENTS:
        return None
    matrix, exponent = torch.frexp(problem.map.entries(row, column))
    exponent = exponent.long()
    if problem.mask_out is not None:
        scale, more = torch.frexp(problem.mask_out.flatten()[row])
        matrix, exponent = matrix * scale.unsqueeze(1), exponent + more.unsqueeze(1)
    if problem.mask_in is not None:
        scale, more = torch.frexp(problem.mask_in.flatten()[column])
        matrix, exponent = matrix * scale, exponent + more
    live = matrix != 0
    if not bool(live.any()):
        return None
    largest = int(exponent[live].max())
    entries = torch.where(live, matrix * power_of_two((exponent - largest).clamp(min=-1000, max=0)), 0)
    reduced = Problem(BatchedDenseMap(entries.unsqueeze(0)), 1)
    index = torch.zeros(1, dtype=torch.long, device=device)
    return Reduced(index, reduced, row.unsqueeze(0), column.unsqueeze(0)), largest
