"""Adapters of products and quotients of values that both vary: squares of rotated pairs.

With s = (x + y)/√2 and d = (x − y)/√2 the product is x y = (s² − d²)/2: a rotation, an activation and a sum. So
products need no rule of their own. Of the value and of its interval the product itself decides (a *shortcut*), at any
scale of the two, and the tangent at the centre is exact: s₀² − d₀² differentiates to x₀ δy + y₀ δx.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.activations import curved
from lirpa_lip.network.adapters.elementwise_affine import widened
from lirpa_lip.network.adapters.pairs import rotation
from lirpa_lip.norms.linear_map import ComposedMap, DiagonalMap, FunctionMap, LinearMap

#: Most pairs that one operator may multiply: a product of larger matrices would not fit into memory as a graph.
MOST_PAIRS = 1 << 20


def square(builder, traced, parent: str) -> str:
    """``x²``."""
    return builder.activation(traced.name, traced.operator, parent, curved.square())


def product(builder, traced, first: str, second: str, shape: torch.Size) -> str:
    """``x * y``, broadcast to ``shape``."""
    if first == second:
        return square(builder, traced, first)
    maps = [widened(builder, parent, shape) for parent in (first, second)]
    return emit_products(builder, traced, (first, second), maps, _Sum(shape, ()))


class _Sum:
    """What is done with the products: a sum over some axes, ``(batch, *shape) -> (batch, *out)``."""

    def __init__(self, shape: torch.Size, axes: tuple[int, ...]) -> None:
        self.shape, self.axes = shape, axes

    def __call__(self, x: Tensor) -> Tensor:
        return x.sum(self.axes) if self.axes else x

    @property
    def terms(self) -> int:
        count = 1
        for axis in self.axes:
            count *= self.shape[axis - 1]
        return count


def emit_products(builder, traced, parents: tuple[str, str], maps: list[LinearMap], total: _Sum) -> str:
    """``Σ (A x)(B y)``, entry by entry and summed over some axes, for maps A and B that place the factors."""
    shape = maps[0].out_shape
    if shape.numel() > MOST_PAIRS:
        raise traced.unsupported(f"it takes {shape.numel()} products of varying values, and {MOST_PAIRS} are the most")
    like = {"dtype": builder.dtype, "device": builder.device}
    places = [FunctionMap(partial(_place, at=i), shape, **like, monomial=True, entries_nonnegative=True) for i in (0, 1)]
    into: list[LinearMap] = [ComposedMap([place, map_]) for place, map_ in zip(places, maps, strict=True)]
    pairs = builder.affine(f"{traced.name}:pairs", traced.operator, parents, into)
    turn = rotation(builder.shape(pairs), builder.dtype, builder.device)
    rotated = builder.affine(f"{traced.name}:rotate", traced.operator, [pairs], [turn])
    squares = builder.activation(f"{traced.name}:squares", traced.operator, rotated, curved.square())
    halves = [
        _scaled(builder, FunctionMap(partial(_part, at=i, total=total), builder.shape(squares), **like,
                                     monomial=not total.axes, entries_nonnegative=True), factor)
        for i, factor in ((0, 0.5), (1, -0.5))
    ]  # fmt: skip
    enclose = partial(_enclose, total=total)
    return builder.affine(
        traced.name, traced.operator, [squares, squares], halves, shortcut=(pairs, enclose)
    )


def _scaled(builder, map_: LinearMap, factor: float) -> LinearMap:
    scale = torch.full(map_.out_shape, factor, dtype=builder.dtype, device=builder.device)
    return ComposedMap([DiagonalMap(scale, map_.out_shape), map_])


def _place(x: Tensor, at: int) -> Tensor:
    """``(batch, *shape) -> (batch, 2, *shape)``, zero but at one of the two."""
    return F.pad(x.unsqueeze(1), [0, 0] * (x.ndim - 1) + [at, 1 - at])


def _part(x: Tensor, at: int, total: _Sum) -> Tensor:
    return total(x[:, at])


def _enclose(lower: Tensor, upper: Tensor, total: _Sum) -> tuple[Tensor, Tensor]:
    """Exact bounds of the sums of products from bounds of their factors, rounded outwards; of a point its value."""
    if lower is upper:
        value = total(lower[:, 0] * lower[:, 1])
        return value, value
    (lx, ly), (ux, uy) = lower.unbind(1), upper.unbind(1)
    ends = torch.stack([zero_times(a, b) for a in (lx, ux) for b in (ly, uy)])
    low, high = total(ends.amin(0)), total(ends.amax(0))
    slack = (total.terms + 2) * torch.finfo(low.dtype).eps * total(ends.detach().abs().amax(0))
    tiny = total.terms * torch.finfo(low.dtype).tiny
    return low - slack - tiny, high + slack + tiny


def zero_times(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` with 0 · inf = 0: bounds of a product with a factor that is exactly 0."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)
