"""Adapters of additions, and of scalings by constants."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import ComposedMap, DiagonalMap, FunctionMap, IdentityMap, LinearMap


def broadcast_to_sample(value: Tensor, shape: torch.Size) -> Tensor:
    """A constant that broadcasts against ``(batch, *shape)``, expanded to ``shape``.

    Raises:
        ShapeError: a constant that differs from sample to sample.
    """
    value = value.reshape((1,) * (len(shape) + 1 - value.ndim) + tuple(value.shape))
    return one_sample(value)[0].expand(shape)


def one_sample(value: Tensor) -> Tensor:
    """A constant whose first axis is the batch's, with batch size 1.

    Raises:
        ShapeError: a constant that differs from sample to sample.
    """
    if value.shape[0] != 1 and not bool((value == value[:1]).all()):
        raise ShapeError(f"a constant of shape {tuple(value.shape)} differs between samples; use one of batch size 1.")
    return value[:1]


def widened(builder: GraphBuilder, parent: str, shape: torch.Size) -> LinearMap:
    """The identity of ``parent``, or its expansion where the output is larger."""
    source = builder.shape(parent)
    if source == shape:
        return IdentityMap(shape, builder.dtype, builder.device)
    pad = (1,) * (len(shape) - len(source))

    def expand(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *pad, *source).expand(x.shape[0], *shape)

    return FunctionMap(expand, source, builder.dtype, builder.device, monomial=True, entries_nonnegative=True)


def _sum(builder: GraphBuilder, traced: Traced, signs: tuple[int, int]) -> str:
    parents, maps, bias = [], [], None
    for index, sign in enumerate(signs):
        parent = traced.parents[index]
        if parent is None:
            bias = sign * broadcast_to_sample(traced.constant(index).to(builder.dtype), traced.shape).unsqueeze(0)
            continue
        identity = widened(builder, parent, traced.shape)
        if sign < 0:
            identity = negated(builder, traced.shape) if builder.shape(parent) == traced.shape else _minus(identity)
        parents.append(parent)
        maps.append(identity)
    return builder.affine(traced.name, traced.operator, parents, maps, bias)


def negated(builder: GraphBuilder, shape: torch.Size) -> DiagonalMap:
    """``x -> -x``."""
    return DiagonalMap(-torch.ones(shape, dtype=builder.dtype, device=builder.device), shape)


def _minus(map_: LinearMap) -> LinearMap:
    ones = torch.ones(map_.out_shape, dtype=map_.dtype, device=map_.device)
    return ComposedMap([DiagonalMap(-ones, map_.out_shape), map_])


def add(builder: GraphBuilder, traced: Traced) -> str:
    """``x + y``, or ``x`` plus a constant."""
    return _sum(builder, traced, (1, 1))


def subtract(builder: GraphBuilder, traced: Traced) -> str:
    """``x - y``, or with one of them constant."""
    return _sum(builder, traced, (1, -1))


def negate(builder: GraphBuilder, traced: Traced) -> str:
    """``-x``."""
    return builder.affine(traced.name, traced.operator, [traced.parent], [negated(builder, traced.shape)])


def scale_by(builder: GraphBuilder, traced: Traced, parent: str, factor: Tensor) -> str:
    """A value times a constant, broadcast against each other."""
    shape = torch.broadcast_shapes((1, *builder.shape(parent)), factor.shape)[1:]
    spread = broadcast_to_sample(factor.to(builder.dtype), shape)
    maps: LinearMap = DiagonalMap(spread, shape)
    if builder.shape(parent) != shape:
        maps = ComposedMap([maps, widened(builder, parent, shape)])
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def scale(builder: GraphBuilder, traced: Traced) -> str:
    """``c * x`` for a constant ``c``."""
    index = 0 if traced.parents[0] is None else 1
    parent = traced.parents[1 - index]
    assert parent is not None
    return scale_by(builder, traced, parent, traced.constant(index))


def divide_by_constant(builder: GraphBuilder, traced: Traced) -> str:
    """``x / c`` for a constant ``c``."""
    return scale_by(builder, traced, traced.parent, 1 / traced.constant(1).to(builder.dtype))
