"""Turns of channels next to a convolution, written into its kernel: the product is a convolution again.

A composition of the two knows its entries only by applying it to unit vectors, one for each output. Written into
the kernel they are read off, so that lengths of rows cost one convolution of squares.
"""

from __future__ import annotations

from collections.abc import Sequence

from lirpa_lip.norms.maps.base import LinearMap
from lirpa_lip.norms.maps.conv import ConvMap


class ChannelMap(LinearMap):
    """A map that does the same at every position, and reads and writes channels, the first axis, alone."""


def fused(maps: Sequence[LinearMap]) -> list[LinearMap]:
    """An equal product, left to right, with each map of channels in the kernel of a convolution beside it."""
    found: list[LinearMap] = []
    for part in maps:
        left = found[-1] if found else None
        if isinstance(left, ChannelMap) and isinstance(part, ConvMap) and part.groups == 1:
            found[-1] = part.with_weight(left.forward(part.weight.unsqueeze(0)).squeeze(0))
        elif isinstance(left, ConvMap) and isinstance(part, ChannelMap) and left.groups == 1:
            found[-1] = left.with_weight(part.adjoint(left.weight))
        else:
            found.append(part)
    return found
