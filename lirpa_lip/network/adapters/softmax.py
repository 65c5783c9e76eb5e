"""Adapters of log-sum-exp, log-softmax and softmax: a tournament of pairs, like a maximum, with a smooth ``|·|``.

With s = (x + y)/√2 and d = (x − y)/√2, log(eˣ + eʸ) = (s + g(d))/√2 for g(d) = √2 log(2 cosh(d/√2)), whose slope lies
in [−1, 1]: the maximum's rotation with a rounded corner. So no exponential of a large number occurs, no sum in a
divisor, and softmax is exp(x − LSE(x)), whose argument is never positive. Subtracting anything from all entries changes
nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lirpa_lip.activations import smooth_functions as smooth
from lirpa_lip.activations.piecewise_linear import PiecewiseLinear
from lirpa_lip.activations.side_by_side import SideBySide
from lirpa_lip.network.adapters.elementwise_affine import negated, widened
from lirpa_lip.network.adapters.pooling import reduction_axes
from lirpa_lip.network.adapters.tournament import Candidates, Contest, emit_tournament
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import ComposedMap, FunctionMap, IdentityMap, LinearMap, ReshapeMap

Interval = tuple[Tensor, Tensor]
#: Roundings of an exponential, a logarithm and a few operations around them.
_FEW = 32


def emit_log_sum_exp(builder: GraphBuilder, traced: Traced, name: str, parent: str, axes: tuple[int, ...]) -> str:
    """``log Σ exp`` over axes (counted with the batch), which are kept with size 1."""
    shape = builder.shape(parent)
    others = [a for a in range(1, len(shape) + 1) if a not in axes]

    def arrange(x: Tensor) -> Tensor:
        moved = x.permute(0, *axes, *others)
        return moved.flatten(1, len(axes)).flatten(2) if others else moved.flatten(1, len(axes)).unsqueeze(2)

    kept = torch.Size(1 if a in axes else shape[a - 1] for a in range(1, len(shape) + 1))
    like = {"dtype": builder.dtype, "device": builder.device}
    maps = FunctionMap(arrange, shape, **like, monomial=True, entries_nonnegative=True)
    candidates = builder.affine(f"{name}:candidates", traced.operator, [parent], [maps])
    own = (candidates, partial(_enclose_sum, shape=kept))
    every = Candidates(candidates, builder.shape(candidates))
    found = emit_tournament(builder, traced.operator, name, every, kept, shortcut=own, contest=_SOFT)
    builder.add(replace(builder.nodes[found], roundings=builder.shape(candidates)[0] + _FEW))
    return found


def _soft_fold(shape: torch.Size, pairs: int) -> SideBySide:
    return SideBySide(PiecewiseLinear([0.0], [1.0, 1.0], 0.0), smooth.log_cosh(), shape[0] - pairs)


_SOFT = Contest(_soft_fold, torch.logaddexp, roundings=16)


def _enclose_sum(lower: Tensor, upper: Tensor, shape: torch.Size) -> Interval:
    """Monotone in every entry; rounded outwards, and of a point its value."""
    low = torch.logsumexp(lower, 1).reshape(-1, *shape)
    if lower is upper:
        return low, low
    high = torch.logsumexp(upper, 1).reshape(-1, *shape)
    slack = (lower.shape[1] + _FEW) * torch.finfo(low.dtype).eps
    return low - slack * (1 + low.abs()), high + slack * (1 + high.abs())


def emit_log_softmax(builder: GraphBuilder, traced: Traced, name: str, parent: str, axes: tuple[int, ...]) -> str:
    """``x − log Σ exp x`` over axes."""
    shape = builder.shape(parent)
    total = emit_log_sum_exp(builder, traced, f"{name}:sum", parent, axes)
    minus: LinearMap = ComposedMap([negated(builder, shape), widened(builder, total, shape)])
    maps: list[LinearMap] = [IdentityMap(shape, builder.dtype, builder.device), minus]
    enclose = partial(_enclose_difference, axes=axes)
    found = builder.affine(name, traced.operator, [parent, total], maps, shortcut=(parent, enclose))
    count = 1
    for axis in axes:
        count *= shape[axis - 1]
    builder.add(replace(builder.nodes[found], roundings=count + _FEW))
    return found


def _enclose_difference(lower: Tensor, upper: Tensor, axes: tuple[int, ...]) -> Interval:
    """Least where the entry itself is least and the others are largest; rounded outwards, and of a point its value."""
    if lower is upper:
        value = lower - torch.logsumexp(lower, axes, keepdim=True)
        return value, value
    others = [a for a in range(lower.ndim) if a not in axes]
    order = (*others, *axes)
    back = [order.index(a) for a in range(lower.ndim)]

    def flat(t: Tensor) -> Tensor:
        return t.permute(order).flatten(len(others))

    low, high = flat(lower), flat(upper)
    count = low.shape[-1]
    same = torch.eye(count, dtype=torch.bool, device=low.device)

    def difference(own: Tensor, rest: Tensor) -> Tensor:
        apart = torch.where(same, 0.0, rest.unsqueeze(-2) - own.unsqueeze(-1))
        return -torch.logsumexp(apart, -1)

    slack = (count + _FEW) * torch.finfo(low.dtype).eps
    found = []
    for own, rest, sign in ((low, high, -1), (high, low, 1)):
        value = difference(own, rest)
        size = 1 + value.abs() + own.abs() + rest.abs().amax(-1, keepdim=True)
        moved = (value + sign * slack * size).clamp(max=0.0)
        found.append(moved.reshape([lower.shape[a] for a in order]).permute(back))
    return found[0], found[1]


def emit_softmax(builder: GraphBuilder, traced: Traced, parent: str, axes: tuple[int, ...]) -> str:
    """``exp(x − log Σ exp x)`` over axes."""
    logarithm = emit_log_softmax(builder, traced, f"{traced.name}:log", parent, axes)
    found = builder.activation(traced.name, traced.operator, logarithm, smooth.exp())
    builder.add(replace(builder.nodes[found], roundings=builder.nodes[logarithm].roundings))
    return found


def _axis(builder: GraphBuilder, traced: Traced) -> tuple[str, tuple[int, ...]]:
    parent = traced.parent
    ndim = len(builder.shape(parent)) + 1
    axis = int(traced.attr.get("axis", -1)) % ndim
    if axis == 0:
        raise traced.unsupported("it works along the batch axis")
    return parent, (axis,)


def softmax(builder: GraphBuilder, traced: Traced) -> str:
    """``exp x / Σ exp x`` along one axis."""
    return emit_softmax(builder, traced, *_axis(builder, traced))


def log_softmax(builder: GraphBuilder, traced: Traced) -> str:
    """``x − log Σ exp x`` along one axis."""
    parent, axes = _axis(builder, traced)
    return emit_log_softmax(builder, traced, traced.name, parent, axes)


def log_sum_exp(builder: GraphBuilder, traced: Traced) -> str:
    """``log Σ exp x`` over given axes."""
    axes, keep = reduction_axes(builder, traced)
    parent = traced.parent
    name = traced.name if keep else f"{traced.name}:kept"
    found = emit_log_sum_exp(builder, traced, name, parent, axes)
    if keep:
        return found
    source = builder.shape(found)
    shape = torch.Size(n for i, n in enumerate(source) if i + 1 not in axes)
    maps = ReshapeMap(source, shape, dtype=builder.dtype, device=builder.device)
    return builder.affine(traced.name, traced.operator, [found], [maps])


def softmax_in_parts(builder: GraphBuilder, above: str, below: str) -> tuple[str, tuple[int, ...]] | None:
    """``(x, axes)`` if the quotient of two nodes is the softmax of x: exp z over its own sum, with z = x − m or x.

    What is subtracted must be the same for all entries that are summed.
    """
    top, bottom = builder.nodes[above], builder.nodes[below]
    if top.operator != "BoundExp" or top.activation is None or bottom.operator != "BoundReduceSum":
        return None
    if bottom.parents != (above,) or len(bottom.shape) != len(top.shape):
        return None
    axes = tuple(i + 1 for i, (a, b) in enumerate(zip(top.shape, bottom.shape)) if b == 1 and a > 1)
    shifted = builder.nodes[top.parents[0]]
    if shifted.operator == "BoundSub" and len(shifted.parents) == 2:
        x, shift = shifted.parents
        shape = builder.shape(shift)
        constant = len(shape) == len(top.shape) and all(shape[a - 1] == 1 for a in axes)
        if axes and constant and builder.shape(x) == top.shape:
            return x, axes
    return (shifted.name, axes) if axes else None
