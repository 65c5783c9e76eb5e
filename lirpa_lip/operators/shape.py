"""Adapters of operators that move values without changing them: reshape, transpose, slice, concat, pad, resize."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.norms.linear_map import FunctionMap, ReshapeMap


def _moved(builder, traced, fn, parent: str | None = None) -> str:
    parent = parent or traced.parent
    maps = FunctionMap(
        fn, builder.shape(parent), builder.dtype, builder.device, monomial=True, entries_nonnegative=True
    )
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def reshape(builder, traced) -> str:
    """Flatten, reshape, squeeze and unsqueeze: the order of a sample's values stays, its shape is as traced."""
    parent = traced.parents[0]
    if parent is None:
        raise traced.unsupported("its first input is constant")
    maps = ReshapeMap(builder.shape(parent), traced.shape, dtype=builder.dtype, device=builder.device)
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def identity(builder, traced) -> str:
    """Dropout in eval mode, casts and the like: nothing happens."""
    return traced.parent


def transpose(builder, traced) -> str:
    """Permutation of the axes; the batch axis must stay first."""
    order = tuple(traced.attr["perm"])
    if order[0] != 0:
        raise traced.unsupported(f"permutation {order} moves the batch axis")
    return _moved(builder, traced, partial(torch.permute, dims=order))


def _sample_axis(axis: int, ndim: int, traced) -> int:
    axis = axis + ndim if axis < 0 else axis
    if axis == 0:
        raise traced.unsupported("it works along the batch axis")
    return axis


def slice_(builder, traced) -> str:
    """``x[..., start:end, ...]`` along one axis."""
    attr, constants = traced.attr, [traced.constant(i) for i in range(1, 5)]
    start, end, axis, step = (
        int(torch.as_tensor(c).flatten()[0]) if c is not None else default
        for c, default in zip(constants, [*(attr.get(k, [None])[0] for k in ("starts", "ends", "axes")), 1])
    )
    shape = builder.shape(traced.parents[0])
    axis = _sample_axis(axis, len(shape) + 1, traced)
    size = shape[axis - 1]
    if step < 1:
        raise traced.unsupported(f"step {step} is not positive")
    start, end = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))

    def cut(x: Tensor) -> Tensor:
        return x.narrow(axis, start, end - start)[(slice(None),) * axis + (slice(None, None, step),)]

    return _moved(builder, traced, cut, traced.parents[0])


def split(builder, traced) -> str:
    """One output of ``split`` or ``chunk``."""
    shape = builder.shape(traced.parents[0])
    axis = _sample_axis(traced.attr.get("axis", 0), len(shape) + 1, traced)
    sizes = traced.attr.get("split")
    sizes = [int(s) for s in (sizes if sizes is not None else torch.as_tensor(traced.constant(1)).tolist())]
    index = traced.bound.output_index
    start = sum(sizes[:index])
    return _moved(builder, traced, lambda x: x.narrow(axis, start, sizes[index]), traced.parents[0])


def concatenate(builder, traced) -> str:
    """Concatenation along one axis: each part is padded with zeros to the whole, and the parts add up."""
    axis = _sample_axis(traced.attr["axis"], len(traced.shape) + 1, traced)
    parents, maps, bias, start = [], [], None, 0
    for index, parent in enumerate(traced.parents):
        value = None if parent is not None else traced.constant(index).to(builder.dtype)
        size = (builder.shape(parent) if parent is not None else value.shape[1:])[axis - 1]
        place = partial(_embed, axis=axis, start=start, total=traced.shape[axis - 1])
        if parent is None:
            bias = place(value[:1]) if bias is None else bias + place(value[:1])
        else:
            parents.append(parent)
            like = dict(dtype=builder.dtype, device=builder.device)
            maps.append(FunctionMap(place, builder.shape(parent), **like, monomial=True, entries_nonnegative=True))
        start += size
    return builder.affine(traced.name, traced.operator, parents, maps, bias)


def _embed(x: Tensor, axis: int, start: int, total: int) -> Tensor:
    after = total - start - x.shape[axis]
    return F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [start, after])


def pad(builder, traced) -> str:
    """Constant padding; the constant goes into the bias."""
    pads = traced.attr.get("pads")
    pads = [int(p) for p in (pads if pads is not None else traced.constant(1).tolist())]
    if traced.attr.get("mode", "constant") != "constant":
        raise traced.unsupported("only constant padding is supported")
    value = traced.attr.get("value", None)
    value = float(value if value is not None else (traced.constant(2) if traced.constant(2) is not None else 0.0))
    ndim = len(pads) // 2
    if pads[0] or pads[ndim]:
        raise traced.unsupported("it pads the batch axis")
    widths = [w for axis in reversed(range(1, ndim)) for w in (pads[axis], pads[ndim + axis])]
    name = _moved(builder, traced, lambda x: F.pad(x, widths))
    if value:
        node = builder.nodes[name]
        ones = torch.ones(1, *builder.shape(traced.parent), dtype=builder.dtype, device=builder.device)
        return builder.affine(name, traced.operator, node.parents, node.maps, value * (1 - F.pad(ones, widths)))
    return name


def resize(builder, traced) -> str:
    """Upsampling to the traced size, nearest or bilinear."""
    mode = traced.attr.get("mode", "nearest")
    size = tuple(traced.shape[1:])
    if mode == "nearest":
        return _moved(builder, traced, lambda x: F.interpolate(x, size=size, mode="nearest"), traced.parents[0])
    corners = traced.attr.get("coordinate_transformation_mode", "half_pixel") == "align_corners"
    names = {1: "linear", 2: "bilinear"}
    if mode != "linear" or len(size) not in names:
        raise traced.unsupported(f"resize mode {mode!r} in {len(size)} dimensions")

    def interpolate(x: Tensor) -> Tensor:
        return F.interpolate(x, size=size, mode=names[len(size)], align_corners=corners)

    parent = traced.parents[0]
    maps = FunctionMap(interpolate, builder.shape(parent), builder.dtype, builder.device, entries_nonnegative=True)
    return builder.affine(traced.name, traced.operator, [parent], [maps])
