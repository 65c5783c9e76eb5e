"""Adapters of resampling: nearest, linear and bicubic, to sizes or by factors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.network.adapters.affine import along_last, along_last_but_one
from lirpa_lip.network.adapters.shape import moved
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import FunctionMap


def resize(builder: GraphBuilder, traced: Traced) -> str:
    """Upsampling by constant factors, nearest or bilinear."""
    mode, parent = traced.attr.get("mode", "nearest"), traced.varying(0)
    shape, names = builder.shape(parent), {1: "linear", 2: "bilinear", 3: "trilinear"}
    axes = len(shape) - 1
    where = traced.attr.get("coordinate_transformation_mode", "half_pixel")
    plain = mode == "nearest" or (mode == "linear" and axes in names and where in ("half_pixel", "align_corners"))
    if not plain:
        raise traced.unsupported(f"mode {mode!r} with {where!r} coordinates in {axes} dimensions")
    options = _resize_target(traced, shape[1:])
    if mode == "nearest":
        return moved(builder, traced, partial(F.interpolate, mode="nearest", **options), parent)
    corners = where == "align_corners"
    fn = partial(F.interpolate, mode=names[axes], align_corners=corners, **options)
    maps = FunctionMap(fn, shape, builder.dtype, builder.device, entries_nonnegative=True)
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def upsample(mode: str) -> Callable[[GraphBuilder, Traced], str]:
    """Adapter of upsampling in one mode, to a constant size or by constant factors, aligned at the corners or not."""

    def adapter(builder: GraphBuilder, traced: Traced) -> str:
        like = builder.shape(traced.parent), builder.dtype, builder.device
        fn = partial(F.interpolate, mode=mode, **_aten_target(traced))
        return builder.affine(
            traced.name, traced.operator, [traced.parent], [FunctionMap(fn, *like, entries_nonnegative=True)]
        )

    adapter.__doc__ = f"Upsampling, {mode}, aligned at the corners, to a constant size or by constant factors."
    return adapter


def upsample_bicubic(builder: GraphBuilder, traced: Traced) -> str:
    """Bicubic upsampling, whose weights have both signs: one axis after the other, a matrix for each."""
    return _by_axes(builder, traced, {"mode": "bicubic"})


def smoothed(mode: str) -> Callable[[GraphBuilder, Traced], str]:
    """Adapter of antialiased resampling in one mode, one axis after the other, a matrix for each."""

    def adapter(builder: GraphBuilder, traced: Traced) -> str:
        return _by_axes(builder, traced, {"mode": mode, "antialias": True})

    adapter.__doc__ = f"Antialiased resampling, {mode}: one axis after the other, a matrix for each."
    return adapter


def _by_axes(builder: GraphBuilder, traced: Traced, how: dict[str, Any]) -> str:
    options = {**_aten_target(traced), **how}
    key = "size" if "size" in options else "scale_factor"
    _, height, width = builder.shape(traced.parent)
    like = {"dtype": builder.dtype, "device": builder.device}

    def weights(axis: int, count: int) -> Tensor:
        """``(count, out)``: what each position alone becomes, along the last axis of images of height 1.

        PyTorch's antialiased kernel computes something else along the other axis of images of width 1.
        """
        target = (1, options[key][axis])
        alone = torch.eye(count, **like).reshape(count, 1, 1, count)
        return F.interpolate(alone, **{**options, key: target}).reshape(count, -1)

    across = along_last(builder, weights(1, width), builder.shape(traced.parent))
    rows = builder.affine(f"{traced.name}:rows", traced.operator, [traced.parent], [across])
    return builder.affine(
        traced.name, traced.operator, [rows], [along_last_but_one(builder, weights(0, height), across.out_shape)]
    )


def _aten_target(traced: Traced) -> dict[str, Any]:
    """What of ``(x, size, align_corners, factors...)`` was given; an argument that was None is an empty tensor."""
    size, corners = traced.constant(1), bool(traced.constant(2))
    if size.numel() > 0:
        return {"size": tuple(map(int, size)), "align_corners": corners}
    factors = traced.constant(len(traced.bound.inputs) - 1)
    return {"scale_factor": tuple(map(float, factors)), "align_corners": corners}


def _resize_target(traced: Traced, size: torch.Size) -> dict:
    """``size=`` where it is given or a whole number, else ``scale_factor=``, which also decides what is read where."""
    count = len(traced.parents)
    sizes = traced.constant(3) if count > 3 else None
    scales: Any = traced.constant(1 if count < 3 else 2) if sizes is None else None
    if scales is None and sizes is None:
        scales = torch.as_tensor(traced.attr["scales"])
    if sizes is not None:
        return {"size": tuple(int(n) for n in sizes[2:])}
    factors = [float(f) for f in scales[2:]]
    exact = [n * f for n, f in zip(size, factors)]
    if all(abs(n - round(n)) < 1e-4 for n in exact):
        return {"size": tuple(round(n) for n in exact)}
    return {"scale_factor": tuple(factors)}
