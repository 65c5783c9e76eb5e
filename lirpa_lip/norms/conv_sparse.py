"""A masked convolution without what is eliminated, as a sparse matrix per sample.

Every output is a sum over the taps of the kernel, and over the channels at the pixel a tap reads. Of those only the
live ones stay: their number falls with the product of the two masks' shares, while a convolution always takes all.
Live channels of a pixel stand side by side in an order shared by all that reads them, so that a tap's entries are one
run of consecutive columns, found from two sums; nothing is searched or sorted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.norms.conv_gram import side
from lirpa_lip.norms.linear_map import ConvMap, ConvTransposeMap
from lirpa_lip.norms.maps.sparse import CompressedRows, SparseMap, row_starts, spread
from lirpa_lip.norms.problem import Problem

#: Multiplications of a convolution in the time of one with a sparse entry, the writing of the entries included.
WORTHWHILE = {torch.float32: 450, torch.float64: 40}

#: Activations of the whole batch that the matrices of a group of samples may take, while samples leave it and there are
#: two copies of them.
MEMORY = 7

#: Entries that are worked out at once: a share of the batch's larger activation, and enough to share launches.
CHUNK_SHARE, CHUNK = 1 / 16, 1 << 13


def sparse_pays(problem: Problem) -> bool:
    """Whether so much of a convolution is eliminated that a product with the entries left is faster."""
    conv = _convolution(problem)
    if conv is None or conv.axes > 2 or conv.dtype not in WORTHWHILE:
        return False
    entries = entry_counts(problem)
    fast = int(entries.sum()) * WORTHWHILE[conv.dtype] <= problem.map.multiply_adds * problem.size
    return fast and int(entries.max()) <= _room(problem)


def sparse_groups(problem: Problem) -> list[Tensor]:
    """Indices of samples whose matrices fit into memory together; one group after the other is solved."""
    room, groups, taken = _room(problem), list[list[int]](), 0
    for sample, entries in enumerate(entry_counts(problem).tolist()):
        if not groups or taken + entries > room:
            groups.append([])
            taken = 0
        groups[-1].append(sample)
        taken += entries
    return [torch.tensor(group, device=problem.map.device) for group in groups]


def _room(problem: Problem) -> int:
    """Entries that may be held at once."""
    width = torch.finfo(problem.map.dtype).bits // 8
    entry = 2 * 2 * (width + 4) + 4  # twice the matrix and its transpose: value and column; and columns on the move
    return int(MEMORY * problem.size * max(problem.map.in_numel, problem.map.out_numel) * width / entry)


def _convolution(problem: Problem) -> ConvMap | None:
    if isinstance(problem.map, ConvTransposeMap):
        return problem.map.conv
    return problem.map if isinstance(problem.map, ConvMap) else None


def entry_counts(problem: Problem) -> Tensor:
    """Entries of each sample's matrix with a live row and a live column, those of zero weight included; ``(B,)``."""
    conv = _convolution(problem)
    assert conv is not None
    # in float64, so that no algorithm for convolutions rounds what is counted to another whole number
    inputs, outputs = (sites.mask.sum(3, dtype=torch.float64) for sites in _sides(problem, conv))
    kernel = inputs.new_ones(1, 1, *_two(conv.weight.shape[2:], 1))
    options = {"stride": _two(conv.stride, 1), "padding": _two(conv.padding, 0), "dilation": _two(conv.dilation, 1)}
    reached = F.conv2d(inputs.reshape(-1, 1, *_two(conv.in_shape[1:], 1)), kernel, **options)
    linked = outputs.reshape(problem.size, -1) * reached.reshape(problem.size, -1)
    return linked.sum(1).round().long()


def _two(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
    return (values[0], values[1] if len(values) == 2 else neutral)


@dataclass(frozen=True)
class _Sites:
    """One side's live sites.

    Attributes:
        mask: ``(B, groups, pixels, channels of a group)``, boolean.
        scale: the same shape.
    """

    mask: Tensor
    scale: Tensor

    def part(self, samples: slice) -> _Sites:
        return _Sites(self.mask[samples], self.scale[samples])


def _sides(problem: Problem, conv: ConvMap) -> tuple[_Sites, _Sites]:
    """Inputs and outputs of the convolution, which for a transposed one are outputs and inputs of the map."""
    given = [(problem.mask_in, problem.map.in_shape), (problem.mask_out, problem.map.out_shape)]
    if conv is not problem.map:
        given.reverse()
    return _sites(*given[0], problem, conv, conv.in_shape), _sites(*given[1], problem, conv, conv.out_shape)


def _sites(mask: Tensor | None, shape: torch.Size, problem: Problem, conv: ConvMap, full: torch.Size) -> _Sites:
    if mask is None:
        mask = torch.ones(1, *shape, dtype=conv.dtype, device=conv.device).expand(problem.size, *shape)
    if shape != full:  # windows of the convolution that a transposed one has no input for
        missing = [extent - n for n, extent in zip(shape[1:], full[1:], strict=True)]
        mask = F.pad(mask, [side for extra in reversed(missing) for side in (0, extra)])
    scale = mask.reshape(problem.size, conv.groups, full[0] // conv.groups, math.prod(full[1:])).transpose(2, 3)
    return _Sites(scale != 0, scale)


class SparseProblem(NamedTuple):
    """A problem on a `SparseMap`.

    Attributes:
        rows, columns: that were kept, flat indices of the map's outputs ``(B, r)`` and inputs ``(B, c)``, each sample's
            padded with the numel of that side.
    """

    problem: Problem
    rows: Tensor
    columns: Tensor


def sparse_problem(problem: Problem) -> SparseProblem:
    """The problem on a `SparseMap`, masks multiplied in."""
    conv = _convolution(problem)
    assert conv is not None
    inputs, outputs = _sides(problem, conv)
    entries = int(entry_counts(problem).sum())
    forward = _compressed(conv, True, outputs, inputs, entries)
    adjoint = _compressed(conv, False, inputs, outputs, entries)
    kept = _places(conv.out_shape, outputs), _places(conv.in_shape, inputs)
    if conv is problem.map:
        return SparseProblem(Problem(SparseMap(forward, adjoint), problem.size), *kept)
    turned = Problem(SparseMap(adjoint, forward), problem.size)
    return SparseProblem(turned, kept[1], _cropped(kept[0], conv, problem))


def _widest(sites: _Sites) -> int:
    return max(1, int(sites.mask.flatten(1).sum(1).max()))


def _places(shape: torch.Size, sites: _Sites) -> Tensor:
    """``(B, widest)``: place of each live site in a flat vector of the convolution's side, padded with its numel."""
    size, _, pixels, channels = sites.mask.shape
    sample, group, pixel, channel = sites.mask.nonzero().unbind(1)
    index = torch.full((size, _widest(sites)), shape.numel(), device=sample.device)
    counts = sites.mask.flatten(1).sum(1)
    index[sample, spread(torch.zeros_like(counts), counts)] = (group * channels + channel) * pixels + pixel
    return index


def _cropped(index: Tensor, conv: ConvMap, problem: Problem) -> Tensor:
    """Places in the convolution's output as places in the input of the transposed one, which may be smaller."""
    full, shape = conv.out_shape, problem.map.in_shape
    if full == shape:
        return index
    place = torch.unravel_index(index.clamp(max=full.numel() - 1), full)
    flat = torch.zeros_like(index)
    for coordinate, extent in zip(place, shape, strict=True):
        flat = flat * extent + coordinate
    return torch.where(index == full.numel(), shape.numel(), flat)


def _compressed(conv: ConvMap, outputs: bool, here: _Sites, there: _Sites, entries: int) -> CompressedRows:
    """The matrices with a row for each live site of one side, and a column for each of the other."""
    part = side(conv, 0, outputs)
    partners = [part.partner(tap) for tap in part.taps]
    partner, linked = (torch.stack(found, 1) for found in zip(*partners, strict=True))  # (pixels, taps)
    channels = conv.weight.reshape(conv.groups, -1, *conv.weight.shape[1:2], len(partners))
    weight = channels if outputs else channels.transpose(1, 2)  # (groups, channels here, channels there, taps)
    height, width = _widest(here), _widest(there)
    columns = torch.empty(entries, dtype=torch.int32, device=conv.device)
    values = torch.empty(entries, dtype=conv.dtype, device=conv.device)
    size, lengths, done = len(here.mask), [], 0
    links = int(here.mask.sum()) * len(partners)
    chunk = max(CHUNK, int(CHUNK_SHARE * size * max(conv.in_shape.numel(), conv.out_shape.numel())))
    step = max(1, chunk * size // max(1, links + entries))
    for first in range(0, size, step):
        samples = slice(first, first + step)
        length, column, value = _entries(
            weight, partner, linked, here.part(samples), there.part(samples), height, width
        )
        lengths.append(length)
        columns[done : done + len(column)] = column + first * width
        values[done : done + len(value)] = value
        done += len(value)
    if done != entries:  # the rest would be whatever the memory held
        raise RuntimeError(f"{done} entries of a masked convolution where {entries} were counted.")
    return CompressedRows(row_starts(torch.cat(lengths)), columns, values, height, width)


def _entries(
    weight: Tensor, partner: Tensor, linked: Tensor, here: _Sites, there: _Sites, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row lengths ``(b * height,)``, and columns and values of the entries, row after row, of some samples."""
    size, groups, pixels, _ = there.mask.shape
    taps = partner.shape[1]
    sample, group, pixel, channel = here.mask.nonzero().unbind(1)
    # the other side's live sites stand in the order of their buckets (sample, group, pixel): how many, and from where
    count = there.mask.sum(3).flatten()
    begin = count.cumsum(0) - count
    bucket = (sample * groups + group).unsqueeze(1) * pixels + partner[pixel]  # (rows, taps)
    number = torch.where(linked[pixel], count[bucket], 0)
    site = spread(begin[bucket].flatten(), number.flatten())
    link = torch.arange(number.numel(), device=number.device).repeat_interleave(number.flatten())
    row, tap = link.div(taps, rounding_mode="floor"), link % taps
    value = weight[group[row], channel[row], there.mask.nonzero()[site, 3], tap]
    value = value * here.scale[here.mask][row] * there.scale[there.mask][site]
    # a sample's columns begin at a multiple of the width, where its sites come right after those of the one before
    live = there.mask.flatten(1).sum(1)
    shift = torch.arange(size, device=live.device) * width - (live.cumsum(0) - live)
    lengths = torch.zeros(size, height, dtype=torch.long, device=live.device)
    own = here.mask.flatten(1).sum(1)
    lengths[sample, spread(torch.zeros_like(own), own)] = number.sum(1)
    return lengths.flatten(), site + shift[sample[row]], value
