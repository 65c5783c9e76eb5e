"""Adapters of norms and normalisations, as compositions: squares, sums, roots and products."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.activations import curved
from lirpa_lip.network.adapters.elementwise_affine import negated, scale_by, widened
from lirpa_lip.network.adapters.pooling import reduction_axes
from lirpa_lip.network.adapters.products import Total, emit_products
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import ComposedMap, FunctionMap, IdentityMap, LinearMap


def euclidean_norm(builder: GraphBuilder, traced: Traced) -> str:
    """``√(Σ x²)`` over given axes."""
    axes, keep = reduction_axes(builder, traced)
    parent = traced.parent
    squares = builder.activation(f"{traced.name}:squares", traced.operator, parent, curved.square())
    total = _summed(builder, traced, f"{traced.name}:total", squares, axes, keep, mean=False)
    return builder.activation(traced.name, traced.operator, total, curved.square_root())


def instance_norm(builder: GraphBuilder, traced: Traced) -> str:
    """``(x − mean) / √(variance + ε) · weight + bias``, mean and variance over all axes but batch and channels.

    The variance is never less than 0, so that the root is never less than √ε.
    """
    parent, name, operator = traced.parent, traced.name, traced.operator
    shape = builder.shape(parent)
    axes = tuple(range(2, len(shape) + 1))
    mean = _summed(builder, traced, f"{name}:mean", parent, axes, keep=True, mean=True)
    minus: LinearMap = ComposedMap([negated(builder, shape), widened(builder, mean, shape)])
    identity = IdentityMap(shape, builder.dtype, builder.device)
    centred = builder.affine(f"{name}:centred", operator, [parent, mean], [identity, minus])
    squares = builder.activation(f"{name}:squares", operator, centred, curved.square())
    floor = torch.full((1, *[1] * len(shape)), float(traced.attr.get("epsilon", 1e-5)), dtype=builder.dtype)
    variance = _summed(builder, traced, f"{name}:variance", squares, axes, True, True, floor.to(builder.device))
    inverse = builder.activation(f"{name}:reciprocal", operator, variance, curved.reciprocal_root())
    maps = [identity, widened(builder, inverse, shape)]
    inner = Traced(f"{name}:normalised", operator, traced.bound, traced.attr, traced.parents, shape, builder)
    normalised = emit_products(builder, inner, (centred, inverse), maps, Total(shape))
    weight, bias = (traced.constant(i).reshape(1, -1, *[1] * (len(shape) - 1)) for i in (1, 2))
    scaled = scale_by(builder, traced, normalised, weight)
    node = builder.nodes[scaled]
    assert node.maps is not None
    return builder.affine(name, operator, node.parents, node.maps, bias.expand(1, *shape))


def _summed(
    builder: GraphBuilder, traced: Traced, name: str, parent: str, axes: tuple[int, ...], keep: bool, mean: bool,
    bias: Tensor | None = None,
) -> str:  # fmt: skip
    def fn(x: Tensor) -> Tensor:
        return x.mean(axes, keepdim=keep) if mean else x.sum(axes, keepdim=keep)

    maps = FunctionMap(fn, builder.shape(parent), builder.dtype, builder.device, entries_nonnegative=True)
    return builder.affine(name, traced.operator, [parent], [maps], bias)
