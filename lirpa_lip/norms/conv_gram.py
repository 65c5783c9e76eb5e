"""The Gram matrix of a masked convolution as a block tridiagonal matrix.

Let B be the masked convolution or its adjoint, and ``G = B Bᵀ`` over *sites*: (pixel, channel) pairs of one side. A
kernel of K taps couples only sites whose pixels are a few apart, and with 0/1 or other scales m on the other side

    ``G[(x, c), (x + o, c')] = m_x,c m_{x+o},c' sum over tap pairs (k, k') that link x to x + o, and channels e:
                               W[c, e, k] W[c', e, k'] m_{pixel, e}^2``.

For each offset o that is one matrix product, of the gathered squares of the other side's mask, ``(pixels, taps * e)``,
with the products of kernel entries, ``(taps * e, c * c')``. Sites are then ordered by image row, and rows are joined
into blocks as tall as the largest vertical offset: G is block tridiagonal, and eliminated sites drop out of its blocks.

The side may be the outputs (B = A: pixel p = stride x + dilation k - padding, link: ``dilation (k - k') = stride o``)
or the inputs (B = Aᵀ: pixel = (x + padding - dilation k) / stride where that is whole, link: ``o = dilation (k' -
k)``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from lirpa_lip.norms.linear_map import ConvMap

Offset = tuple[int, int]


@dataclass(frozen=True)
class Side:
    """Where the Gram matrix lives, with one or two spatial axes read as two, and one group of channels.

    Attributes:
        weight: ``(c, e, K_y, K_x)``: channels of this side, channels of the other.
        pixels, other: heights and widths of this side and the other.
        stride, padding, dilation: of the convolution.
        outputs: whether this side is the convolution's output.
    """

    weight: Tensor
    pixels: tuple[int, int]
    other: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    outputs: bool

    @property
    def taps(self) -> list[Offset]:
        return list(product(range(self.weight.shape[2]), range(self.weight.shape[3])))

    @cached_property
    def links(self) -> dict[Offset, list[tuple[Offset, Offset]]]:
        """Tap pairs ``(k, k')`` by the offset they link; only offsets after (0, 0) in reading order, and itself."""
        taps = self.taps
        found: dict[Offset, list[tuple[Offset, Offset]]] = {}
        for k, other in product(taps, taps):
            offset = []
            for axis in range(2):
                if self.outputs:
                    step, rest = divmod(self.dilation[axis] * (k[axis] - other[axis]), self.stride[axis])
                else:
                    step, rest = self.dilation[axis] * (other[axis] - k[axis]), 0
                if rest or abs(step) >= self.pixels[axis]:
                    break
                offset.append(step)
            if len(offset) == 2 and tuple(offset) >= (0, 0):
                found.setdefault((offset[0], offset[1]), []).append((k, other))
        return found

    def reach(self) -> int:
        """Largest vertical offset."""
        return max(offset[0] for offset in self.links)

    def partner(self, tap: Offset) -> tuple[Tensor, Tensor]:
        """Flat pixel of the other side that tap k links to each pixel of this side, and whether there is one."""
        coordinates, valid = [], []
        for axis in range(2):
            x = torch.arange(self.pixels[axis], device=self.weight.device)
            if self.outputs:
                position = self.stride[axis] * x + self.dilation[axis] * tap[axis] - self.padding[axis]
                whole = torch.ones_like(x, dtype=torch.bool)
            else:
                shifted = x + self.padding[axis] - self.dilation[axis] * tap[axis]
                position = shifted.div(self.stride[axis], rounding_mode="floor")
                whole = position * self.stride[axis] == shifted
            inside = whole & (position >= 0) & (position < self.other[axis])
            coordinates.append(position.clamp(0, self.other[axis] - 1))
            valid.append(inside)
        flat = coordinates[0].unsqueeze(1) * self.other[1] + coordinates[1]
        return flat.flatten(), (valid[0].unsqueeze(1) & valid[1]).flatten()


def side(conv: ConvMap, group: int, outputs: bool) -> Side:
    """One side of one group of a convolution with one or two spatial axes."""
    height = conv.weight.shape[0] // conv.groups
    weight = conv.weight[group * height : (group + 1) * height]
    weight = weight if conv.axes == 2 else weight.unsqueeze(3)

    def both(values: Sequence[int], neutral: int) -> Offset:
        return (values[0], values[1] if conv.axes == 2 else neutral)

    shapes = [both(shape[1:], 1) for shape in (conv.out_shape, conv.in_shape)]
    here, there = shapes if outputs else shapes[::-1]
    weight = weight if outputs else weight.transpose(0, 1)
    return Side(weight, here, there, both(conv.stride, 1), both(conv.padding, 0), both(conv.dilation, 1), outputs)


def factor_work(side: Side, share: float) -> float:
    """Floating-point operations to form the matrix and to factor it, with a share of its sites not eliminated."""
    channels, others = side.weight.shape[:2]
    pairs = sum(len(pairs) for pairs in side.links.values())
    pixels = side.pixels[0] * side.pixels[1]
    tall = max(1, side.reach())
    block = tall * side.pixels[1] * channels * share
    # Of each block: a factorisation, a triangular solve and a symmetric product, b^3/3 + b^3 + 2 b^3.
    return 2.0 * pixels * pairs * others * channels**2 + math.ceil(side.pixels[0] / tall) * 10 / 3 * block**3


def stencil(side: Side, squares: Tensor | None) -> dict[Offset, Tensor]:
    """``S_o``: the sums over tap pairs and channels, for each offset, ``(*batch, pixels, c, c')``.

    Args:
        squares: ``(*batch, e, pixels of the other side)``, squared mask, or ``None`` for ones.
    """
    if squares is None:
        squares = side.weight.new_ones(side.weight.shape[1], math.prod(side.other))
    partners = {tap: side.partner(tap) for tap in side.taps}
    summed = _summed_first if side.weight.shape[0] ** 2 <= side.weight.shape[1] else _gathered_first
    return summed(side, squares, partners)


def _kernels(side: Side, pairs: Sequence[tuple[Offset, Offset]]) -> Tensor:
    """Products of kernel entries of each tap pair, ``(pairs, e, c, c')``."""
    here, there = (torch.stack([side.weight[:, :, k[0], k[1]] for k in taps]) for taps in zip(*pairs, strict=True))
    return torch.einsum("pce,pde->pecd", here, there)


def _gathered_first(side: Side, squares: Tensor, partners: dict[Offset, tuple[Tensor, Tensor]]) -> dict[Offset, Tensor]:
    """One product per offset, of the mask gathered for all its tap pairs."""
    gathered = {tap: squares[..., flat] * valid for tap, (flat, valid) in partners.items()}
    result = {}
    for offset, pairs in side.links.items():
        products = _kernels(side, pairs)
        summed = torch.cat([gathered[k] for k, _ in pairs], dim=-2).mT @ products.flatten(0, 1).flatten(1)
        result[offset] = summed.reshape(*summed.shape[:-1], *products.shape[2:])
    return result


def _summed_first(side: Side, squares: Tensor, partners: dict[Offset, tuple[Tensor, Tensor]]) -> dict[Offset, Tensor]:
    """One product for all tap pairs, gathered afterwards: with few channels on this side there is less to gather."""
    links = [(offset, pair) for offset, pairs in side.links.items() for pair in pairs]
    products = _kernels(side, [pair for _, pair in links])
    summed = products.permute(0, 2, 3, 1).flatten(0, 2) @ squares
    result: dict[Offset, Tensor] = {}
    for (offset, (tap, _)), part in zip(links, summed.split(products.shape[2] ** 2, dim=-2), strict=True):
        flat, valid = partners[tap]
        value = part[..., flat] * valid
        result[offset] = result[offset] + value if offset in result else value
    shape = products.shape[2:]
    return {offset: value.mT.reshape(*value.shape[:-2], -1, *shape) for offset, value in result.items()}


def blocks(side: Side, values: dict[Offset, Tensor], mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """Diagonal blocks ``D_i`` and couplings ``U_i = G[block i, block i+1]``, eliminated sites dropped.

    Args:
        values: what `stencil` gave.
        mask: ``(c, pixels)`` of this side, or ``None``.
    """
    height, width = side.pixels
    tall = max(1, side.reach())
    channels = side.weight.shape[0]
    kept, diagonal, coupling = [], [], []
    for first in range(0, height, tall):
        rows = range(first, min(first + tall, height))
        if mask is None:
            scale = torch.ones(len(rows) * width * channels, dtype=side.weight.dtype, device=side.weight.device)
        else:
            scale = mask.reshape(channels, height, width)[:, rows.start : rows.stop].permute(1, 2, 0).flatten()
        index = scale.nonzero().squeeze(1)
        kept.append((rows, index, scale[index]))
    for i, (rows, index, scale) in enumerate(kept):
        block = _fill(side, values, rows, rows)[index][:, index]
        diagonal.append(scale.unsqueeze(1) * block * scale)
        if i + 1 < len(kept):
            below, other, other_scale = kept[i + 1]
            block = _fill(side, values, rows, below)[index][:, other]
            coupling.append(scale.unsqueeze(1) * block * other_scale)
    return diagonal, coupling


def _fill(side: Side, values: dict[Offset, Tensor], rows: range, columns: range) -> Tensor:
    """The dense block ``G[sites in image rows, sites in image columns]``, no mask of this side yet."""
    width, channels = side.pixels[1], side.weight.shape[0]
    block = side.weight.new_zeros(len(rows), width, channels, len(columns), width, channels)
    for (down, right), value in values.items():
        x = torch.arange(max(0, -right), min(width, width - right), device=block.device)
        for y in rows:
            if y + down not in columns:
                continue
            part = value[y * width + x]
            block[y - rows.start, x, :, y + down - columns.start, x + right, :] = part
            if rows == columns and (down, right) != (0, 0):
                block[y + down - columns.start, x + right, :, y - rows.start, x, :] = part.mT
    size = len(rows) * width * channels
    return block.reshape(size, -1)
