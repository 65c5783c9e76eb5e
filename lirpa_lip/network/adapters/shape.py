"""Adapters of operators that move values without changing them: reshape, transpose, slice, concat, pad."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.network.adapters.elementwise_affine import broadcast_to_sample, one_sample, widened
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import ComposedMap, DiagonalMap, FunctionMap, ReshapeMap


def moved(builder: GraphBuilder, traced: Traced, fn: Callable[[Tensor], Tensor], parent: str | None = None) -> str:
    parent = parent or traced.parent
    maps = FunctionMap(
        fn, builder.shape(parent), builder.dtype, builder.device, monomial=True, entries_nonnegative=True
    )
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def reshape(builder: GraphBuilder, traced: Traced) -> str:
    """Flatten, reshape, squeeze and unsqueeze: the order of a sample's values stays, its shape is as traced."""
    parent = traced.parents[0]
    if parent is None:
        raise traced.unsupported("its first input is constant")
    source = builder.shape(parent)
    shape = traced.shape
    if traced.operator == "BoundReshape":
        shape = _target_shape(traced, source)
    elif traced.operator == "BoundFlatten" and traced.attr.get("axis", 1) == 1:
        shape = torch.Size([source.numel()])
    if shape.numel() != source.numel():
        raise traced.unsupported(
            f"a sample of {source.numel()} values cannot become one of shape {tuple(shape)}; keep the batch axis "
            "first, and bound with the batch size the model was wrapped with"
        )
    maps = ReshapeMap(source, shape, dtype=builder.dtype, device=builder.device)
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def _target_shape(traced: Traced, source: torch.Size) -> torch.Size:
    """A sample's new shape from the operator's constant: unlike the traced shape, no later batch size changes it."""
    target = [int(n) for n in torch.as_tensor(traced.constant(1)).flatten()][1:]
    target = [source[i] if n == 0 and i < len(source) else n for i, n in enumerate(target)]
    known = math.prod(n for n in target if n != -1)
    shape = torch.Size(source.numel() // max(known, 1) if n == -1 else n for n in target)
    return shape if shape.numel() == source.numel() else traced.shape


def identity(builder: GraphBuilder, traced: Traced) -> str:
    """Dropout in eval mode, casts and the like: nothing happens."""
    return traced.parent


def transpose(builder: GraphBuilder, traced: Traced) -> str:
    """Permutation of the axes; the batch axis must stay first."""
    order = tuple(traced.attr["perm"])
    if order[0] != 0:
        raise traced.unsupported(f"permutation {order} moves the batch axis")
    return moved(builder, traced, partial(torch.permute, dims=order))


def _sample_axis(axis: int, ndim: int, traced: Traced) -> int:
    axis = axis + ndim if axis < 0 else axis
    if axis == 0:
        raise traced.unsupported("it works along the batch axis")
    return axis


def slice_(builder: GraphBuilder, traced: Traced) -> str:
    """``x[..., start:end:step, ...]`` along some axes; a negative step reads backwards."""
    if traced.parents[0] is None:
        raise traced.unsupported("its first input is constant")
    constants = [traced.constant(i) for i in range(1, 5)]
    given = [traced.attr.get(key) if c is None else c for key, c in zip(("starts", "ends", "axes", "steps"), constants)]
    starts, ends, axes, steps = (None if g is None else [int(v) for v in torch.as_tensor(g).flatten()] for g in given)
    shape = builder.shape(traced.parents[0])
    kept: dict[int, list[int]] = {}
    for i, (start, end) in enumerate(zip(starts or (), ends or (), strict=True)):
        axis = _sample_axis(axes[i] if axes else i, len(shape) + 1, traced)
        kept[axis] = list(range(*slice(start, end, steps[i] if steps else 1).indices(shape[axis - 1])))

    def cut(x: Tensor) -> Tensor:
        for axis, positions in kept.items():
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.long, device=x.device))
        return x

    return moved(builder, traced, cut, traced.parents[0])


def gather(builder: GraphBuilder, traced: Traced) -> str:
    """``x[:, i]`` or ``x[:, [i, j]]``: constant positions along one axis; a single one drops the axis."""
    if traced.parents[0] is None or traced.parents[1] is not None:
        raise traced.unsupported("only the values may depend on the network's input, not the positions")
    shape, index = builder.shape(traced.parents[0]), torch.as_tensor(traced.constant(1)).long()
    axis = _sample_axis(traced.attr.get("axis", 0), len(shape) + 1, traced)
    positions = [int(i) % shape[axis - 1] for i in index.flatten()]
    out = (*shape[: axis - 1], *index.shape, *shape[axis:])

    def pick(x: Tensor) -> Tensor:
        chosen = x.index_select(axis, torch.tensor(positions, dtype=torch.long, device=x.device))
        return chosen.reshape(-1, *out)

    return moved(builder, traced, pick, traced.parents[0])


def expand(builder: GraphBuilder, traced: Traced) -> str:
    """Repetition along axes of size 1."""
    if traced.parents[0] is None:
        raise traced.unsupported("its first input is constant")
    parent = traced.parents[0]
    source, target = builder.shape(parent), [int(n) for n in torch.as_tensor(traced.constant(1)).flatten()]
    if len(target) != len(source) + 1:
        raise traced.unsupported("it puts an axis in front of the batch's; use unsqueeze(1) first")
    shape = torch.Size(n if wanted in (1, -1) else wanted for n, wanted in zip(source, target[1:]))
    return builder.affine(traced.name, traced.operator, [parent], [widened(builder, parent, shape)])


def split(builder: GraphBuilder, traced: Traced) -> str:
    """One output of ``split`` or ``chunk``."""
    shape = builder.shape(traced.varying(0))
    axis = _sample_axis(traced.attr.get("axis", 0), len(shape) + 1, traced)
    sizes = traced.attr.get("split")
    sizes = [int(s) for s in (sizes if sizes is not None else torch.as_tensor(traced.constant(1)).tolist())]
    index = traced.bound.output_index
    start = sum(sizes[:index])
    return moved(builder, traced, lambda x: x.narrow(axis, start, sizes[index]), traced.parents[0])


def concatenate(builder: GraphBuilder, traced: Traced) -> str:
    """Concatenation along one axis: each part is padded with zeros to the whole, and the parts add up."""
    axis = _sample_axis(traced.attr["axis"], len(traced.shape) + 1, traced)
    parents, maps, bias, start = [], [], None, 0
    for index, parent in enumerate(traced.parents):
        value: Any = None if parent is not None else traced.constant(index).to(builder.dtype)
        size = (builder.shape(parent) if parent is not None else value.shape[1:])[axis - 1]
        place = partial(_embed, axis=axis, start=start, total=traced.shape[axis - 1])
        if parent is None:
            part = place(one_sample(value))
            bias = part if bias is None else bias + part
        else:
            parents.append(parent)
            like = {"dtype": builder.dtype, "device": builder.device}
            maps.append(FunctionMap(place, builder.shape(parent), **like, monomial=True, entries_nonnegative=True))
        start += size
    return builder.affine(traced.name, traced.operator, parents, maps, bias)


def _embed(x: Tensor, axis: int, start: int, total: int) -> Tensor:
    after = total - start - x.shape[axis]
    return F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [start, after])


def pad(builder: GraphBuilder, traced: Traced) -> str:
    """Padding by a constant, which goes into the bias, by the border, or by reflection."""
    pads = traced.attr.get("pads")
    pads = [int(p) for p in (pads if pads is not None else traced.constant(1).tolist())]
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = modes.get(traced.attr.get("mode", "constant"))
    if mode is None:
        raise traced.unsupported(f"padding mode {traced.attr['mode']!r}")
    value = traced.attr.get("value", None)
    value = float(value if value is not None else (traced.constant(2) if traced.constant(2) is not None else 0.0))
    ndim = len(pads) // 2
    if pads[0] or pads[ndim]:
        raise traced.unsupported("it pads the batch axis")
    widths = [w for axis in reversed(range(1, ndim)) for w in (pads[axis], pads[ndim + axis])]
    if mode != "constant":
        while len(widths) > 2 and widths[-2:] == [0, 0]:
            widths = widths[:-2]  # PyTorch does not want to hear of channels here
        return moved(builder, traced, lambda x: F.pad(x, widths, mode=mode))
    name = moved(builder, traced, lambda x: F.pad(x, widths))
    if value:
        node = builder.nodes[name]
        assert node.maps is not None
        ones = torch.ones(1, *builder.shape(traced.parent), dtype=builder.dtype, device=builder.device)
        return builder.affine(name, traced.operator, node.parents, node.maps, value * (1 - F.pad(ones, widths)))
    return name


def tile(builder: GraphBuilder, traced: Traced) -> str:
    """Repetition of whole samples along axes other than the batch's."""
    counts = [int(n) for n in torch.as_tensor(traced.constant(1)).flatten()]
    if counts[0] != 1:
        raise traced.unsupported("it repeats the batch axis")
    return moved(builder, traced, lambda x: x.repeat(*counts), traced.parents[0])


def cumulative_sum(builder: GraphBuilder, traced: Traced) -> str:
    """Sums up to each position along one axis."""
    parent = traced.parent
    axis = _sample_axis(int(torch.as_tensor(traced.constant(1)).flatten()[0]), len(builder.shape(parent)) + 1, traced)
    maps = FunctionMap(
        lambda x: x.cumsum(axis), builder.shape(parent), builder.dtype, builder.device, entries_nonnegative=True
    )
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def channel_shuffle(builder: GraphBuilder, traced: Traced) -> str:
    """Channels in another order: groups interleaved."""
    groups = int(torch.as_tensor(traced.constant(1)).flatten()[0])

    def shuffled(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

    return moved(builder, traced, shuffled)


def unfold(builder: GraphBuilder, traced: Traced) -> str:
    """Windows of an image side by side (``F.unfold``)."""
    kernel, dilation, padding, stride = (
        tuple(map(int, torch.as_tensor(traced.constant(i)).flatten())) for i in range(1, 5)
    )
    return moved(
        builder, traced, partial(F.unfold, kernel_size=kernel, dilation=dilation, padding=padding, stride=stride)
    )


def choose(builder: GraphBuilder, traced: Traced) -> str:
    """``where(mask, x, y)`` for a constant mask."""
    if traced.parents[0] is not None:
        raise traced.unsupported(
            "its condition depends on the input, where the function may jump; use relu, abs or max"
        )
    mask = torch.as_tensor(traced.constant(0)).bool()
    sizes = [mask.shape] + [
        (1, *builder.shape(p)) if p is not None else traced.constant(i).shape
        for i, p in enumerate(traced.parents[1:], start=1)
    ]
    shape = torch.broadcast_shapes(*sizes)[1:]
    chosen = broadcast_to_sample(mask.to(builder.dtype), shape)
    parents, maps, bias = [], [], None
    for index, share in ((1, chosen), (2, 1 - chosen)):
        parent = traced.parents[index]
        if parent is None:
            constant = broadcast_to_sample(traced.constant(index).to(builder.dtype), shape)
            bias = torch.where(share != 0, constant, 0.0).unsqueeze(0)
            continue
        parents.append(parent)
        maps.append(ComposedMap([DiagonalMap(share, shape), widened(builder, parent, shape)]))
    return builder.affine(traced.name, traced.operator, parents, maps, bias)
