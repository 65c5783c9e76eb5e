"""Adapters of pooling and reductions. Averages are affine; maxima become a tournament of pairwise sorts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.norms.linear_map import ComposedMap, Conv2dMap, DiagonalMap, FunctionMap

from .pairs import emit_pairwise_maximum


def average_pool(builder, traced) -> str:
    """Average pooling as a convolution per channel with the constant kernel 1 / window size."""
    attr, shape = traced.attr, builder.shape(traced.parent)
    kernel = tuple(attr["kernel_shape"])
    stride = tuple(attr.get("strides", [1] * len(kernel)))
    pads = tuple(attr.get("pads", [0] * 2 * len(kernel)))
    if len(kernel) != 2 or pads[:2] != pads[2:] or attr.get("ceil_mode", 0):
        raise traced.unsupported("only two-dimensional average pooling with symmetric padding, without ceil_mode")
    channels, window = shape[0], kernel[0] * kernel[1]
    weight = torch.full((channels, 1, *kernel), 1 / window, dtype=builder.dtype, device=builder.device)
    maps = Conv2dMap(weight, shape, stride, pads[:2], 1, channels)
    if any(pads) and not attr.get("count_include_pad", 0):
        # windows at the border average over fewer pixels
        ones = torch.ones(1, *shape, dtype=builder.dtype, device=builder.device)
        maps = ComposedMap([DiagonalMap(1 / maps.forward(ones)[0], maps.out_shape), maps])
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps])


def global_average_pool(builder, traced) -> str:
    """Mean over all spatial axes, kept with size 1."""
    shape = builder.shape(traced.parent)
    axes = tuple(range(2, len(shape) + 1))
    return _reduction(builder, traced, lambda x: x.mean(axes, keepdim=True))


def reduce_mean(builder, traced) -> str:
    """Mean over given axes."""
    axes, keep = reduction_axes(builder, traced)
    return _reduction(builder, traced, lambda x: x.mean(axes, keepdim=keep))


def reduce_sum(builder, traced) -> str:
    """Sum over given axes."""
    axes, keep = reduction_axes(builder, traced)
    return _reduction(builder, traced, lambda x: x.sum(axes, keepdim=keep))


def _reduction(builder, traced, fn) -> str:
    shape = builder.shape(traced.parents[0])
    maps = FunctionMap(fn, shape, builder.dtype, builder.device, entries_nonnegative=True)
    return builder.affine(traced.name, traced.operator, [traced.parents[0]], [maps])


def reduction_axes(builder, traced) -> tuple[tuple[int, ...], bool]:
    """Axes of a reduction (attribute or constant input) with the batch axis excluded, and whether they are kept."""
    axes = traced.attr.get("axes")
    if axes is None and len(traced.parents) > 1:
        axes = torch.as_tensor(traced.constant(1)).flatten().tolist()
    ndim = len(builder.shape(traced.parents[0])) + 1
    if axes is None:
        raise traced.unsupported("it reduces over all axes, the batch among them")
    axes = tuple(int(a) % ndim for a in axes)
    if 0 in axes:
        raise traced.unsupported("it reduces over the batch axis")
    return axes, bool(traced.attr.get("keepdims", 1))


def max_pool(builder, traced) -> str:
    """Max pooling: windows side by side, then a tournament of pairwise maxima.

    Padding is replaced by repeating the border, which lies in every window that reaches over it, so the maximum is
    the same. Windows that overlap repeat a pixel; that is the only place where the Lipschitz constant exceeds 1.
    """
    attr, shape = traced.attr, builder.shape(traced.parent)
    kernel, stride = tuple(attr["kernel_shape"]), tuple(attr.get("strides", attr["kernel_shape"]))
    pads, dilations = tuple(attr.get("pads", (0, 0, 0, 0))), tuple(attr.get("dilations", (1, 1)))
    if len(kernel) != 2 or pads[:2] != pads[2:] or attr.get("ceil_mode", 0) or dilations != (1, 1):
        raise traced.unsupported("only two-dimensional max pooling with symmetric padding, no dilation, no ceil_mode")
    window = kernel[0] * kernel[1]
    index = _window_index(shape, kernel, stride, pads).to(builder.device)

    def unfold(x: Tensor) -> Tensor:
        taken = x.flatten(2)[:, :, index.flatten()].reshape(x.shape[0], shape[0], window, -1)
        return taken.transpose(1, 2).flatten(2)

    def pooled(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(F.max_pool2d(t, kernel, stride, pads[:2]) for t in (lower, upper))

    like = dict(dtype=builder.dtype, device=builder.device)
    maps = FunctionMap(unfold, shape, **like, monomial=True, entries_nonnegative=True)
    windows = builder.affine(f"{traced.name}:windows", traced.operator, [traced.parent], [maps])
    return emit_pairwise_maximum(builder, traced, windows, shortcut=(traced.parent, pooled))


def _window_index(shape, kernel, stride, pads) -> Tensor:
    """Flat pixel index of every window element, ``(window, positions)``."""
    rows, columns = (
        (
            torch.arange((size + 2 * p - k) // s + 1).unsqueeze(0) * s - p + torch.arange(k).unsqueeze(1)
        ).clamp(0, size - 1)
        for size, k, s, p in zip(shape[1:], kernel, stride, pads)
    )
    index = rows[:, None, :, None] * shape[2] + columns[None, :, None, :]
    return index.reshape(kernel[0] * kernel[1], -1)


def reduce_max(builder, traced) -> str:
    """Maximum over given axes, as a tournament."""
    axes, keep = reduction_axes(builder, traced)
    shape = builder.shape(traced.parents[0])
    others = [a for a in range(1, len(shape) + 1) if a not in axes]

    def arrange(x: Tensor) -> Tensor:
        moved = x.permute(0, *axes, *others)
        return moved.flatten(1, len(axes)).flatten(2) if others else moved.flatten(1, len(axes)).unsqueeze(2)

    def reduced(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return lower.amax(axes, keepdim=keep), upper.amax(axes, keepdim=keep)

    like = dict(dtype=builder.dtype, device=builder.device)
    maps = FunctionMap(arrange, shape, **like, monomial=True, entries_nonnegative=True)
    candidates = builder.affine(f"{traced.name}:candidates", traced.operator, [traced.parents[0]], [maps])
    return emit_pairwise_maximum(builder, traced, candidates, shortcut=(traced.parents[0], reduced))
