"""Scales and changes of shape at the ends of a composition, folded into the masks."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.norms.linear_map import ComposedMap, DiagonalMap, IdentityMap, LinearMap, ReshapeMap
from lirpa_lip.norms.problem import Problem


def simplify(problem: Problem) -> Problem:
    """An equal problem, but for the shapes of its vectors, whose map begins and ends with its core.

    Masks of the result may be negative where a scale was; singular vectors are those of the problem given.
    """
    if not isinstance(problem.map, ComposedMap | DiagonalMap):
        return problem
    maps = _flat(problem.map)
    mask_in, mask_out = problem.mask_in, problem.mask_out
    while len(maps) > 1 and isinstance(maps[0], DiagonalMap | ReshapeMap):
        first = maps.pop(0)
        mask_out = _fold(first, mask_out, first.in_shape, problem.size)
    while len(maps) > 1 and isinstance(maps[-1], DiagonalMap | ReshapeMap):
        last = maps.pop()
        mask_in = _fold(last, mask_in, last.out_shape, problem.size)
    core = maps[0] if len(maps) == 1 else ComposedMap(maps)
    if core.coisometric and mask_in is not None and bool((mask_in == 1).all()):
        mask_in = None  # then the norm is known
    if isinstance(core, DiagonalMap):
        mask_in = _fold(core, mask_in, core.out_shape, problem.size)
        core = IdentityMap(core.out_shape, core.dtype, core.device)
    return Problem(core, problem.size, mask_in, mask_out)


def _flat(linear_map: LinearMap) -> list[LinearMap]:
    if not isinstance(linear_map, ComposedMap):
        return [linear_map]
    return [part for m in linear_map.maps for part in _flat(m)]


def _fold(part: LinearMap, mask: Tensor | None, shape: tuple[int, ...], size: int) -> Tensor | None:
    """The mask beyond a scale or a change of shape, with that scale, at the core's end of it."""
    if isinstance(part, DiagonalMap):
        scale = part.scale.expand(size, *shape)
        if mask is None:
            return scale
        product = mask * scale
        # what underflows is not eliminated
        least = torch.full_like(product, torch.finfo(product.dtype).tiny)
        return torch.where((product == 0) & (mask != 0) & (scale != 0), least, product)
    return None if mask is None else mask.reshape(size, *shape)
