"""Adapters of operators with weights: Linear, MatMul, convolutions, batch norm."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.errors import TrainingModeError
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

from .elementwise_affine import broadcast_to_sample


def linear(builder, traced) -> str:
    """``y = alpha * x W^T + beta * b`` on flat samples (ONNX Gemm)."""
    weight = traced.constant(1)
    weight = weight if traced.attr.get("transB", 1) else weight.mT
    alpha, beta = traced.attr.get("alpha", 1.0), traced.attr.get("beta", 1.0)
    weight = weight if alpha == 1 else alpha * weight
    bias = traced.constant(2)
    bias = None if bias is None else (bias if beta == 1 else beta * bias).reshape(1, -1)
    if len(builder.shape(traced.parent)) != 1 or traced.attr.get("transA", 0):
        raise traced.unsupported("it is supported on flat samples (batch, features) only")
    return builder.affine(traced.name, traced.operator, [traced.parent], [DenseMap(weight)], bias)


def matmul(builder, traced) -> str:
    """``y = x W`` for a constant matrix, along the last axis."""
    if traced.parents[0] is not None and traced.parents[1] is not None:
        raise traced.unsupported("both factors depend on the input (attention), which has no Lipschitz rule here")
    shape, weight = builder.shape(traced.parent), traced.constant(1)
    if weight.ndim != 2:
        raise traced.unsupported("the constant factor must be a matrix")
    if len(shape) == 1:
        maps: LinearMap = DenseMap(weight.mT)
    else:
        # the last axis as channels of a convolution with kernel 1
        rest, last = shape[:-1].numel(), shape[-1]
        like = {"dtype": builder.dtype, "device": builder.device}
        maps = ComposedMap(
            [
                ReshapeMap((rest, weight.shape[1]), (*shape[:-1], weight.shape[1]), **like),
                FunctionMap(_swap, (weight.shape[1], rest), **like, monomial=True, entries_nonnegative=True),
                Conv1dMap(weight.mT.unsqueeze(-1), (last, rest)),
                FunctionMap(_swap, (rest, last), **like, monomial=True, entries_nonnegative=True),
                ReshapeMap(shape, (rest, last), **like),
            ]
        )
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps])


def _swap(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def convolution(builder, traced) -> str:
    """Convolution with stride, symmetric padding, dilation and groups, in one to three dimensions."""
    weight, attr = traced.constant(1), traced.attr
    axes = weight.ndim - 2
    maps = ConvMap(
        weight,
        builder.shape(traced.parent),
        tuple(attr.get("strides", [1] * axes)),
        _padding(traced, axes),
        tuple(attr.get("dilations", [1] * axes)),
        attr.get("group", 1),
    )
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps], _channel_bias(traced, axes))


def convolution_transposed(builder, traced) -> str:
    """Transposed convolution, in one to three dimensions."""
    weight, attr = traced.constant(1), traced.attr
    axes = weight.ndim - 2
    maps = ConvTransposeMap(
        weight,
        builder.shape(traced.parent),
        tuple(attr.get("strides", [1] * axes)),
        _padding(traced, axes),
        tuple(attr.get("output_padding", [0] * axes)),
        tuple(attr.get("dilations", [1] * axes)),
        attr.get("group", 1),
    )
    return builder.affine(traced.name, traced.operator, [traced.parent], [maps], _channel_bias(traced, axes))


def _padding(traced, axes: int) -> tuple[int, ...]:
    pads = tuple(traced.attr.get("pads", [0] * 2 * axes))
    if pads[:axes] != pads[axes:]:
        raise traced.unsupported(f"padding {pads} differs between the two sides of an axis")
    return pads[:axes]


def _channel_bias(traced, axes: int) -> Tensor | None:
    bias = traced.constant(2)
    return None if bias is None else bias.reshape(1, -1, *[1] * axes)


def batch_norm(builder, traced) -> str:
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
