"""The Gram operator of a convolution of grey images, applied as a stencil of its own.

With one channel on the smaller side, ``G = BBᵀ`` couples a pixel to its few neighbours by one number each
(`conv_gram`). These numbers are sums of the other side's mask, found once by a matrix product; then an application of G
touches a dozen numbers a pixel, where the pair of convolutions makes and reads all channels of the other side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.norms.conv_gram import side, stencil
from lirpa_lip.norms.linear_map import ConvMap, LinearMap


def stencil_pays(linear_map: LinearMap, on_input: bool) -> bool:
    """Whether the stencil is the faster way: float32 on a CPU, where its many small steps cost no launches."""
    if not isinstance(linear_map, ConvMap) or linear_map.axes != 2 or linear_map.groups != 1:
        return False
    shape = linear_map.in_shape if on_input else linear_map.out_shape
    if shape[0] != 1 or linear_map.dtype != torch.float32 or linear_map.device.type != "cpu":
        return False
    offsets = len(side(linear_map, 0, not on_input).links)
    return 16 * offsets * shape.numel() <= linear_map.multiply_adds


class StencilGram:
    """``BBᵀ`` without this side's mask.

    Args:
        conv: the convolution.
        on_input: whether this side is its input.
        squares: ``(B, *shape of the other side)``, squared mask, or ``None`` for ones.
    """

    def __init__(self, conv: ConvMap, on_input: bool, squares: Tensor | None) -> None:
        part = side(conv, 0, not on_input)
        self.pixels, self.per_sample = part.pixels, squares is not None
        values = stencil(part, None if squares is None else squares.flatten(2))
        self.values = {offset: value.reshape(-1, *self.pixels) for offset, value in values.items()}

    def apply(self, x: Tensor) -> Tensor:
        """``(B, pixels) -> (B, pixels)``."""
        image = x.reshape(-1, *self.pixels)
        result = self.values[(0, 0)] * image
        height, width = self.pixels
        for (down, right), value in self.values.items():
            if (down, right) == (0, 0):
                continue
            # Pixels that have a partner this far down and to the right (or left), and their partners.
            here = (slice(None), slice(0, height - down), slice(max(0, -right), min(width, width - right)))
            there = (slice(None), slice(down, height), slice(max(0, right), min(width, width + right)))
            result[here].addcmul_(value[here], image[there])
            result[there].addcmul_(value[here], image[here])
        return result.flatten(1)

    def select(self, index: Tensor) -> StencilGram:
        """The operators of the samples at a 1-D index tensor."""
        part = object.__new__(StencilGram)
        part.pixels, part.per_sample = self.pixels, self.per_sample
        part.values = {o: value[index] if self.per_sample else value for o, value in self.values.items()}
        return part
