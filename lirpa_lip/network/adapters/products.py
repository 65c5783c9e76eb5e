"""Adapters of products and quotients of values that both vary: squares of rotated pairs.

With s = (x + y)/√2 and d = (x − y)/√2 the product is x y = (s² − d²)/2: a rotation, an activation and a sum. So
products need no rule of their own. Of the value and of its interval the product itself decides (a *shortcut*), at any
scale of the two, and the tangent at the centre is exact: s₀² − d₀² differentiates to x₀ δy + y₀ δx.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.activations import curved
from lirpa_lip.network.adapters.affine import matmul
from lirpa_lip.network.adapters.elementwise_affine import divide_by_constant, scale, scale_by, widened
from lirpa_lip.network.adapters.pairs import rotation
from lirpa_lip.network.adapters.softmax import emit_softmax, softmax_in_parts
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import ComposedMap, DiagonalMap, FunctionMap, LinearMap

#: Most pairs that one operator may multiply: a product of larger matrices would not fit into memory as a graph.
MOST_PAIRS = 1 << 20


def square(builder: GraphBuilder, traced: Traced, parent: str) -> str:
    """``x²``."""
    return builder.activation(traced.name, traced.operator, parent, curved.square())


def product(builder: GraphBuilder, traced: Traced, first: str, second: str, shape: torch.Size) -> str:
    """``x * y``, broadcast to ``shape``."""
    if first == second:
        return square(builder, traced, first)
    maps = [widened(builder, parent, shape) for parent in (first, second)]
    return emit_products(builder, traced, (first, second), maps, Total(shape))


class Total:
    """The sum of products over some axes: of ``(batch, *shape)`` those at ``axes``, counted with the batch."""

    def __init__(self, shape: torch.Size, axes: tuple[int, ...] = ()) -> None:
        self.axes = axes
        self.terms = math.prod(shape[axis - 1] for axis in axes)

    def __call__(self, x: Tensor) -> Tensor:
        return x.sum(self.axes) if self.axes else x

    def of_pairs(self, x: Tensor) -> Tensor:
        """Of ``(batch, 2, *shape)`` over the pairs as well."""
        return self(x.sum(1))

    def enclose(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Exact bounds of the sums from bounds of the factors, rounded outwards; of a point its value."""
        if lower is upper:
            value = self(lower[:, 0] * lower[:, 1])
            return value, value
        (lx, ly), (ux, uy) = lower.unbind(1), upper.unbind(1)
        ends = torch.stack([zero_times(a, b) for a in (lx, ux) for b in (ly, uy)])
        low, high = self(ends.amin(0)), self(ends.amax(0))
        info = torch.finfo(low.dtype)
        slack = (self.terms + 2) * (info.eps * self(ends.detach().abs().amax(0)) + info.tiny)
        return low - slack, high + slack


def emit_products(
    builder: GraphBuilder, traced: Traced, parents: tuple[str, str], maps: list[LinearMap], total: Total
) -> str:
    """``Σ (A x)(B y)``, entry by entry and summed over some axes, for maps A and B that place the factors."""
    shape = maps[0].out_shape
    if shape.numel() > MOST_PAIRS:
        raise traced.unsupported(f"it takes {shape.numel()} products of varying values, and {MOST_PAIRS} are the most")
    like = {"dtype": builder.dtype, "device": builder.device}
    places = [
        FunctionMap(partial(_place, at=i), shape, **like, monomial=True, entries_nonnegative=True) for i in (0, 1)
    ]
    into: list[LinearMap] = [ComposedMap([place, map_]) for place, map_ in zip(places, maps, strict=True)]
    pairs = builder.affine(f"{traced.name}:pairs", traced.operator, parents, into)
    turn = rotation(builder.shape(pairs), builder.dtype, builder.device)
    rotated = builder.affine(f"{traced.name}:rotate", traced.operator, [pairs], [turn])
    builder.add(replace(builder.nodes[rotated], factors=True))
    squares = builder.activation(f"{traced.name}:squares", traced.operator, rotated, curved.square())
    signs = torch.tensor([0.5, -0.5], dtype=builder.dtype, device=builder.device)
    signs = signs.reshape(2, *[1] * len(shape)).expand(2, *shape)
    summed = FunctionMap(total.of_pairs, builder.shape(squares), **like, entries_nonnegative=True)
    out = ComposedMap([summed, DiagonalMap(signs, builder.shape(squares))])
    return builder.affine(traced.name, traced.operator, [squares], [out], shortcut=(pairs, total.enclose))


def _place(x: Tensor, at: int) -> Tensor:
    """``(batch, *shape) -> (batch, 2, *shape)``, zero but at one of the two."""
    return F.pad(x.unsqueeze(1), [0, 0] * (x.ndim - 1) + [at, 1 - at])


def zero_times(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` with 0 · inf = 0: bounds of a product with a factor that is exactly 0."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def multiply(builder: GraphBuilder, traced: Traced) -> str:
    """``x * y``, ``x²``, or ``c * x`` for a constant ``c``."""
    first, second = traced.parents
    if first is None or second is None:
        return scale(builder, traced)
    shape = torch.broadcast_shapes((1, *builder.shape(first)), (1, *builder.shape(second)))[1:]
    return product(builder, traced, first, second, shape)


def divide(builder: GraphBuilder, traced: Traced) -> str:
    """``x / c``, ``c / y`` or ``x / y``: a product with the reciprocal, and by a square root with ``1/√y``."""
    above, below = traced.parents
    if below is None:
        return divide_by_constant(builder, traced)
    parts = None if above is None else softmax_in_parts(builder, above, below)
    if parts is not None:
        return emit_softmax(builder, traced, *parts)
    node = builder.nodes[below]
    record = curved.reciprocal()
    if node.operator == "BoundSqrt" and node.activation is not None:
        below, record = node.parents[0], curved.reciprocal_root()
    inverse = builder.activation(f"{traced.name}:reciprocal", traced.operator, below, record)
    if above is None:
        return scale_by(builder, traced, inverse, traced.constant(0))
    shape = torch.broadcast_shapes((1, *builder.shape(above)), (1, *builder.shape(inverse)))[1:]
    return product(builder, traced, above, inverse, shape)


def matrix_product(builder: GraphBuilder, traced: Traced) -> str:
    """``X Y`` for two matrices that vary, one of them a constant, or batches of such."""
    first, second = traced.parents
    if first is None or second is None:
        return matmul(builder, traced)
    left, right = builder.shape(first), builder.shape(second)
    if len(left) < 2 or len(right) < 2:
        raise traced.unsupported("of two varying factors each must be a matrix, behind the batch axis")
    lead = torch.broadcast_shapes(left[:-2], right[:-2])
    shape = torch.Size([*lead, left[-2], left[-1], right[-1]])
    places = (
        partial(_spread, shape=shape, axis=-1),
        partial(_spread, shape=shape, axis=-3),
    )
    like = {"dtype": builder.dtype, "device": builder.device, "monomial": True, "entries_nonnegative": True}
    maps: list[LinearMap] = [FunctionMap(fn, builder.shape(p), **like) for fn, p in zip(places, (first, second))]
    return emit_products(builder, traced, (first, second), maps, Total(shape, (len(shape) - 1,)))


def _spread(x: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Matrices repeated along a new axis, and along the leading axes of ``shape``."""
    x = x.unsqueeze(axis)
    missing = len(shape) + 1 - x.ndim
    return x.reshape(x.shape[0], *[1] * missing, *x.shape[1:]).expand(x.shape[0], *shape)
