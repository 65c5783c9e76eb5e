"""Adapters of pooling and reductions. Averages are affine; maxima become a tournament of pairwise sorts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.activations.piecewise_linear import PiecewiseLinear
from lirpa_lip.network.adapters.elementwise_affine import broadcast_to_sample, negated, widened
from lirpa_lip.network.adapters.tournament import Candidates, emit_tournament
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import ComposedMap, ConvMap, DiagonalMap, FunctionMap, LinearMap


def average_pool(builder: GraphBuilder, traced: Traced) -> str:
    """Average pooling as a convolution per channel with the constant kernel 1 / window size."""
    attr, shape = traced.attr, builder.shape(traced.parent)
    kernel = tuple(attr["kernel_shape"])
    axes = len(kernel)
    stride, pads = tuple(attr.get("strides", [1] * axes)), _padding(traced, axes)
    counts_padding = bool(attr.get("count_include_pad", 0))
    if attr.get("ceil_mode", 0):
        # the last window may hang over the edge and then divides by what PyTorch says
        options = {"stride": stride, "padding": pads, "ceil_mode": True, "count_include_pad": counts_padding}
        return _reduction(builder, traced, partial(_AVERAGE[axes], kernel_size=kernel, **options))
    channels, window = shape[0], math.prod(kernel)
    weight = torch.full((channels, 1, *kernel), 1 / window, dtype=builder.dtype, device=builder.device)
    maps: LinearMap = ConvMap(weight, shape, stride, pads, 1, groups=channels)
    if any(pads) and not counts_padding:
        # windows at the border average over fewer pixels
        ones = torch.ones(1, *shape, dtype=builder.dtype, device=builder.device)
        maps = ComposedMap([DiagonalMap(1 / maps.forward(ones)[0], maps.out_shape), maps])
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps])


_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _padding(traced: Traced, axes: int) -> tuple[int, ...]:
    pads = tuple(traced.attr.get("pads", [0] * 2 * axes))
    if pads[:axes] != pads[axes:]:
        raise traced.unsupported(f"padding {pads} differs between the two sides of an axis")
    return pads[:axes]


def adaptive_average_pool(builder: GraphBuilder, traced: Traced) -> str:
    """Adaptive average pooling to a size that does not divide the input's: windows of unequal size."""
    size = tuple(int(n) for n in torch.as_tensor(traced.constant(1)).flatten())
    pool = F.adaptive_avg_pool1d if len(size) == 1 else F.adaptive_avg_pool2d
    return _reduction(builder, traced, partial(pool, output_size=size))


def global_average_pool(builder: GraphBuilder, traced: Traced) -> str:
    """Mean over all spatial axes, kept with size 1."""
    shape = builder.shape(traced.parent)
    axes = tuple(range(2, len(shape) + 1))
    return _reduction(builder, traced, lambda x: x.mean(axes, keepdim=True))


def reduce_mean(builder: GraphBuilder, traced: Traced) -> str:
    """Mean over given axes."""
    axes, keep = reduction_axes(builder, traced)
    return _reduction(builder, traced, lambda x: x.mean(axes, keepdim=keep))


def reduce_sum(builder: GraphBuilder, traced: Traced) -> str:
    """Sum over given axes."""
    axes, keep = reduction_axes(builder, traced)
    return _reduction(builder, traced, lambda x: x.sum(axes, keepdim=keep))


def _reduction(builder: GraphBuilder, traced: Traced, fn: Callable[[Tensor], Tensor]) -> str:
    parent = traced.varying(0)
    shape = builder.shape(parent)
    maps = FunctionMap(fn, shape, builder.dtype, builder.device, entries_nonnegative=True)
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def reduction_axes(builder: GraphBuilder, traced: Traced) -> tuple[tuple[int, ...], bool]:
    """Axes of a reduction (attribute or constant input) with the batch axis excluded, and whether they are kept."""
    axes = traced.attr.get("axes")
    if axes is None and len(traced.parents) > 1:
        axes = torch.as_tensor(traced.constant(1)).flatten().tolist()
    ndim = len(builder.shape(traced.varying(0))) + 1
    if axes is None:
        raise traced.unsupported("it reduces over all axes, the batch among them")
    axes = tuple(int(a) % ndim for a in axes)
    if 0 in axes:
        raise traced.unsupported("it reduces over the batch axis")
    return axes, bool(traced.attr.get("keepdims", 1))


def max_pool(builder: GraphBuilder, traced: Traced) -> str:
    """Max pooling: windows side by side, then a tournament of pairwise maxima.

    What a window reads outside the image is replaced by a pixel it reads inside, so the maximum is the same. Windows
    that overlap repeat a pixel; that is the only place where the Lipschitz constant exceeds 1.
    """
    attr, shape = traced.attr, builder.shape(traced.parent)
    kernel = tuple(attr["kernel_shape"])
    axes = len(kernel)
    space = attr.get("strides", [1] * axes), _padding(traced, axes), attr.get("dilations", [1] * axes)
    index = _positions(shape[1:], kernel, *space, bool(attr.get("ceil_mode", 0)))
    out_shape = torch.Size([shape[0], *(i.shape[1] for i in index)])
    flat = _flat_index(index, shape[1:]).to(builder.device)
    channel = torch.arange(shape[0], device=builder.device).reshape(1, -1, 1) * shape[1:].numel()
    windows = (channel + flat.unsqueeze(1)).flatten(1)
    candidates = Candidates(traced.parent, torch.Size(windows.shape), windows)
    return _largest(builder, traced, candidates, out_shape)


def window_index(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilations: Sequence[int],
    *,
    ceil: bool,
) -> Tensor:
    """Flat position in an image of the given sizes of everything a window reads: (window, *windows flattened)."""
    return _flat_index(_positions(sizes, kernel, strides, padding, dilations, ceil), sizes)


def _positions(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
) -> list[Tensor]:
    axes = zip(sizes, kernel, strides, padding, dilations, strict=False)
    return [_windows(size, k, s, p, d, ceil) for size, k, s, p, d in axes]


def _windows(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil: bool) -> Tensor:
    """Positions every window reads along one axis, ``(kernel, windows)``, those outside replaced by one inside."""
    slack = size + 2 * pad - dilation * (kernel - 1) - 1
    count = slack // stride + 1
    if ceil and slack % stride and count * stride < size + pad:
        count += 1  # a window more, unless it would start behind the image
    at = torch.arange(count).unsqueeze(0) * stride - pad + dilation * torch.arange(kernel).unsqueeze(1)
    inside = (at >= 0) & (at < size)
    first = torch.where(inside, at, size).amin(0, keepdim=True)
    return torch.where(inside, at, first)


def _flat_index(index: list[Tensor], sizes: torch.Size) -> Tensor:
    """Flat pixel index of every window element, ``(window, positions)``."""
    axes = len(index)
    total = torch.zeros((), dtype=torch.long)
    for axis, (positions, size) in enumerate(zip(index, sizes)):
        shape = [1] * 2 * axes
        shape[axis], shape[axes + axis] = positions.shape
        total = total * size + positions.reshape(shape)
    return total.flatten(0, axes - 1).flatten(1)


def reduce_max(builder: GraphBuilder, traced: Traced) -> str:
    """Maximum over given axes, as a tournament."""
    return _largest(builder, traced, *_candidates(builder, traced, 1))


def reduce_min(builder: GraphBuilder, traced: Traced) -> str:
    """Minimum over given axes: the maximum of the negatives, negated."""
    return _smallest(builder, traced, *_candidates(builder, traced, -1))


def _candidates(builder: GraphBuilder, traced: Traced, sign: int) -> tuple[Candidates, torch.Size]:
    """The values a reduction chooses from, along the first axis, times a sign; and the shape of the result."""
    axes, keep = reduction_axes(builder, traced)
    parent = traced.varying(0)
    shape = builder.shape(parent)
    others = [a for a in range(1, len(shape) + 1) if a not in axes]

    def arrange(x: Tensor) -> Tensor:
        moved = x.permute(0, *axes, *others)
        return moved.flatten(1, len(axes)).flatten(2) if others else moved.flatten(1, len(axes)).unsqueeze(2)

    kept = [1 if a in axes else shape[a - 1] for a in range(1, len(shape) + 1) if keep or a not in axes]
    maps = _signed(builder, arrange, shape, sign)
    name = builder.affine(f"{traced.name}:candidates", traced.operator, [parent], [maps])
    return Candidates(name, builder.shape(name)), torch.Size(kept)


def _signed(builder: GraphBuilder, fn: Callable[[Tensor], Tensor], shape: torch.Size, sign: int):
    """A map that moves values, times a sign."""
    like = {"dtype": builder.dtype, "device": builder.device}
    maps = FunctionMap(fn, shape, **like, monomial=True, entries_nonnegative=True)
    return maps if sign > 0 else ComposedMap([negated(builder, maps.out_shape), maps])


def maximum(builder: GraphBuilder, traced: Traced) -> str:
    """Elementwise maximum of two or more values, some of them constant, if one likes: a clip if all but one are."""
    if sum(p is not None for p in traced.parents) == 1:
        return _clipped(builder, traced, torch.maximum)
    return _largest(builder, traced, *_side_by_side(builder, traced, 1))


def minimum(builder: GraphBuilder, traced: Traced) -> str:
    """Elementwise minimum: the maximum of the negatives, negated, or a clip."""
    if sum(p is not None for p in traced.parents) == 1:
        return _clipped(builder, traced, torch.minimum)
    return _smallest(builder, traced, *_side_by_side(builder, traced, -1))


def _clipped(builder: GraphBuilder, traced: Traced, choose: Callable[[Tensor, Tensor], Tensor]) -> str:
    """The maximum or minimum of one varying value and constants, at any scale of the constants."""
    at = next(i for i, p in enumerate(traced.parents) if p is not None)
    parent = traced.varying(at)
    constants = [traced.constant(i).to(builder.dtype) for i, p in enumerate(traced.parents) if p is None]
    end = constants[0]
    for constant in constants[1:]:
        end = choose(end, constant)
    shape = torch.broadcast_shapes(end.shape, (1, *builder.shape(parent)))[1:]
    end = broadcast_to_sample(end, shape).unsqueeze(0)
    if builder.shape(parent) != shape:
        parent = builder.affine(f"{traced.name}:input", traced.operator, [parent], [widened(builder, parent, shape)])
    below, above = (0.0, 1.0) if choose is torch.maximum else (1.0, 0.0)
    return builder.activation(traced.name, traced.operator, parent, PiecewiseLinear([end], [below, above], end))


def _side_by_side(builder: GraphBuilder, traced: Traced, sign: int) -> tuple[Candidates, torch.Size]:
    """All inputs broadcast to one shape and stacked along a new first axis, times a sign."""
    count = len(traced.parents)
    constants: list[Any] = [
        None if p is not None else traced.constant(i).to(builder.dtype) for i, p in enumerate(traced.parents)
    ]
    shapes = [c.shape if p is None else (1, *builder.shape(p)) for c, p in zip(constants, traced.parents)]
    shape = torch.broadcast_shapes(*shapes)[1:]
    parents, maps, bias = [], [], torch.zeros(1, count, *shape, dtype=builder.dtype, device=builder.device)
    for i, parent in enumerate(traced.parents):
        if parent is None:
            filled = broadcast_to_sample(constants[i], shape).unsqueeze(0).unsqueeze(0)
            bias = bias + sign * _place(filled.flatten(0, 1), i, count)
            continue
        parents.append(parent)
        into = _signed(builder, partial(_place, at=i, count=count), shape, sign)
        maps.append(into if builder.shape(parent) == shape else ComposedMap([into, widened(builder, parent, shape)]))
    stacked = builder.affine(f"{traced.name}:inputs", traced.operator, parents, maps, bias)
    return Candidates(stacked, builder.shape(stacked)), shape


def _place(x: Tensor, at: int, count: int) -> Tensor:
    """``(B, *shape) -> (B, count, *shape)``, zero but at one position."""
    return F.pad(x.unsqueeze(1), [0, 0] * (x.ndim - 1) + [at, count - 1 - at])


def _largest(
    builder: GraphBuilder, traced: Traced, candidates: Candidates, shape: torch.Size, name: str | None = None
) -> str:
    def enclose(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(candidates.read(end).amax(1).reshape(-1, *shape) for end in (lower, upper))  # type: ignore[return-value]

    own = (candidates.parent, enclose)
    return emit_tournament(builder, traced.operator, name or traced.name, candidates, shape, shortcut=own)


def _smallest(builder: GraphBuilder, traced: Traced, candidates: Candidates, shape: torch.Size) -> str:
    largest = _largest(builder, traced, candidates, shape, f"{traced.name}:negative")
    return builder.affine(traced.name, traced.operator, [largest], [negated(builder, shape)])
