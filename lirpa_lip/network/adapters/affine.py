"""Adapters of operators with weights: Linear, MatMul, convolutions, batch norm."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import TrainingModeError
from lirpa_lip.network.adapters.elementwise_affine import broadcast_to_sample, one_sample, scale_by
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import (
    ComposedMap,
    Conv1dMap,
    ConvMap,
    ConvTransposeMap,
    DenseMap,
    DiagonalMap,
    FunctionMap,
    LinearMap,
    ReshapeMap,
)


def linear(builder: GraphBuilder, traced: Traced) -> str:
    """``y = alpha * x W + beta * b`` on flat samples (ONNX Gemm; ``transB`` says that ``W^T`` is what is given)."""
    weight = traced.constant(1)
    weight = weight if traced.attr.get("transB", 0) else weight.mT
    alpha, beta = traced.attr.get("alpha", 1.0), traced.attr.get("beta", 1.0)
    weight = weight if alpha == 1 else alpha * weight
    bias = traced.constant(2)
    bias = None if bias is None else (bias if beta == 1 else beta * bias).reshape(1, -1)
    if len(builder.shape(traced.parent)) != 1 or traced.attr.get("transA", 0):
        raise traced.unsupported("it is supported on flat samples (batch, features) only")
    return builder.affine(traced.name, traced.operator, [traced.parent], [DenseMap(weight)], bias)


def matmul(builder: GraphBuilder, traced: Traced) -> str:
    """``x W`` along the last axis, or ``W x`` along the last but one, for a constant matrix; or a vector in ``x W``."""
    left = traced.parents[0] is None
    parent = traced.varying(1 if left else 0)
    shape, weight = builder.shape(parent), traced.constant(0 if left else 1)
    if weight.ndim > len(shape) + 1:
        raise traced.unsupported("the constant factor has more axes than the value it multiplies; reshape that first")
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    if weight.ndim > 2:
        return _matrix_each(builder, traced, parent, weight, left)
    if weight.ndim == 1 and left:
        raise traced.unsupported("a constant vector on the left; write x.mT @ vector")
    if left and len(shape) < 2:
        raise traced.unsupported("a constant matrix on the left multiplies the batch axis; write x @ W.T")
    if left:
        maps = along_last_but_one(builder, weight.mT, shape)
    elif weight.ndim == 1:
        product = along_last(builder, weight.unsqueeze(1), shape)
        maps = ComposedMap(
            [ReshapeMap(product.out_shape, shape[:-1], dtype=builder.dtype, device=builder.device), product]
        )
    else:
        maps = along_last(builder, weight, shape)
    return builder.affine(traced.name, traced.operator, [parent], [maps])


def along_last(builder: GraphBuilder, weight: Tensor, shape: torch.Size) -> LinearMap:
    """``x W`` along the last axis of samples of a shape."""
    if len(shape) == 1:
        return DenseMap(weight.mT)
    # the last axis as channels of a convolution with kernel 1
    rest, last = shape[:-1].numel(), shape[-1]
    like = {"dtype": builder.dtype, "device": builder.device}
    return ComposedMap(
        [
            ReshapeMap((rest, weight.shape[1]), (*shape[:-1], weight.shape[1]), **like),
            FunctionMap(_swap, (weight.shape[1], rest), **like, monomial=True, entries_nonnegative=True),
            Conv1dMap(weight.mT.unsqueeze(-1), (last, rest)),
            FunctionMap(_swap, (rest, last), **like, monomial=True, entries_nonnegative=True),
            ReshapeMap(shape, (rest, last), **like),
        ]
    )


def along_last_but_one(builder: GraphBuilder, weight: Tensor, shape: torch.Size) -> LinearMap:
    """``Wᵀ x`` along the last axis but one of samples of a shape: the above between two transpositions."""
    maps = along_last(builder, weight, torch.Size([*shape[:-2], shape[-1], shape[-2]]))
    like = {"dtype": builder.dtype, "device": builder.device, "monomial": True, "entries_nonnegative": True}
    return ComposedMap([FunctionMap(_turn, maps.out_shape, **like), maps, FunctionMap(_turn, shape, **like)])


def _matrix_each(builder: GraphBuilder, traced: Traced, parent: str, weight: Tensor, left: bool) -> str:
    """``x W`` or ``W x`` with a matrix of its own for each of some leading axes: all products, then their sums."""
    shape = builder.shape(parent)
    if len(shape) < 2:
        raise traced.unsupported("its constant is a stack of matrices, and a sample of the other factor is none")
    weight = one_sample(weight) if weight.ndim == len(shape) + 1 else weight.unsqueeze(0)
    spread = torch.Size([*shape[:-2], 1, *shape[-2:]] if left else [*shape, 1])
    like = {"dtype": builder.dtype, "device": builder.device}
    name = f"{traced.name}:products"
    x = builder.affine(f"{traced.name}:input", traced.operator, [parent], [ReshapeMap(shape, spread, **like)])
    inner = Traced(name, traced.operator, traced.bound, traced.attr, traced.parents, None, builder)
    products = scale_by(builder, inner, x, weight.unsqueeze(-1 if left else -3))
    total = FunctionMap(_summed, builder.shape(products), **like, entries_nonnegative=True)
    return builder.affine(traced.name, traced.operator, [products], [total])


def _summed(x: Tensor) -> Tensor:
    return x.sum(-2)


def _turn(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _swap(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def convolution(builder: GraphBuilder, traced: Traced) -> str:
    """Convolution with stride, symmetric padding, dilation and groups, in one to three dimensions."""
    weight, attr = traced.constant(1), traced.attr
    axes = weight.ndim - 2
    maps = ConvMap(
        weight,
        builder.shape(traced.parent),
        tuple(attr.get("strides", [1] * axes)),
        _padding(traced, axes),
        tuple(attr.get("dilations", [1] * axes)),
        groups=attr.get("group", 1),
    )
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps], _channel_bias(traced, axes))


def convolution_transposed(builder: GraphBuilder, traced: Traced) -> str:
    """Transposed convolution, in one to three dimensions."""
    weight, attr = traced.constant(1), traced.attr
    axes = weight.ndim - 2
    maps = ConvTransposeMap(
        weight,
        builder.shape(traced.parent),
        tuple(attr.get("strides", [1] * axes)),
        _padding(traced, axes),
        tuple(attr.get("output_padding", [0] * axes)),
        dilation=tuple(attr.get("dilations", [1] * axes)),
        groups=attr.get("group", 1),
    )
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps], _channel_bias(traced, axes))


def _padding(traced: Traced, axes: int) -> tuple[int, ...]:
    if traced.attr.get("auto_pad", "NOTSET") != "NOTSET":
        raise traced.unsupported(f"auto_pad={traced.attr['auto_pad']!r}; give the padding in numbers")
    pads = tuple(traced.attr.get("pads", [0] * 2 * axes))
    if pads[:axes] != pads[axes:]:
        raise traced.unsupported(f"padding {pads} differs between the two sides of an axis")
    return pads[:axes]


def _channel_bias(traced: Traced, axes: int) -> Tensor | None:
    bias = traced.constant(2)
    return None if bias is None else bias.reshape(1, -1, *[1] * axes)


def batch_norm(builder: GraphBuilder, traced: Traced) -> str:
    """Batch norm in eval mode: ``(x - mean) / sqrt(var + epsilon) * weight + bias`` per channel, a diagonal map."""
    if getattr(traced.bound, "training", False):
        raise TrainingModeError(traced.name, "BatchNorm")
    weight, bias, mean, variance = (traced.constant(i) for i in range(1, 5))
    scale = weight * torch.rsqrt(variance + traced.attr.get("epsilon", 1e-5))
    shape = builder.shape(traced.parent)
    channels = (1, -1, *[1] * (len(shape) - 1))
    maps = DiagonalMap(broadcast_to_sample(scale.reshape(channels), shape), shape)
    shift = (bias - mean * scale).reshape(channels)
    size = (bias.abs() + (mean * scale).abs()).detach().reshape(channels)
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps], shift, bias_size=size)
