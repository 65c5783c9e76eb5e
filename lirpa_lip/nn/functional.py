"""The three activations as functions of tensors, and as single operators when a model is traced.

A model in normal use runs plain tensor operations, so autograd (of any order), ``torch.func`` and ``torch.compile``
see nothing unusual. Under ``torch.jit`` tracing, which auto_LiRPA and the ONNX exporter rest on, each activation is
recorded as *one* operator (``lirpa_lip::ClippedRelu``, ``lirpa_lip::MaxMin``, ``lirpa_lip::ClippedMaxMin``) whose
inputs are the pre-activation and the raw threshold parameters. One node per activation is what lets a bound see that
a neuron is constant: from a chain of minima and maxima it could not. (``torch.jit.save`` cannot write such a trace; to
store a program, use ``torch.export``, which sees the plain operations.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.errors import ShapeError


class _NonNegative(torch.autograd.Function):
    """max(raw, 0), with the gradient of projected descent (see :func:`non_negative`)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor) -> Tensor:
        return raw.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (raw,) = ctx.saved_tensors
        return grad * ((raw >= 0) | (grad < 0)).to(grad.dtype)


def non_negative(raw: Tensor) -> Tensor:
    """θ = max(raw, 0), elementwise, that can always be trained back up.

    The derivative is 1 where ``raw`` ≥ 0. Where ``raw`` < 0 the true derivative is 0, which would freeze a threshold
    for ever once a step has carried it past zero; there the gradient passes if, and only if, descent along it
    *raises* ``raw`` (projected gradient). It cannot drift further down either.
    """
    return raw.clamp(min=0) if torch.jit.is_tracing() else _NonNegative.apply(raw)


def broadcast_threshold(raw: Tensor, z: Tensor) -> Tensor:
    """Views a threshold of shape (C,), (C, 1, …) or ``z.shape[1:]`` so that it broadcasts against z."""
    return raw[(...,) + (None,) * max(z.dim() - 1 - raw.dim(), 0)]


def check_threshold_shape(raw: Tensor, z: Tensor, layer: str) -> None:
    """Raises :class:`ShapeError` unless ``raw`` holds one threshold per neuron or per channel of z (batch, *shape)."""
    if torch.jit.is_tracing():
        return  # sizes are symbols there; every tracer has run the model on the same input before
    got, want = tuple(raw.shape), tuple(z.shape[1:])
    per_channel = len(want) > 0 and got in {want[:1], want[:1] + (1,) * (len(want) - 1)}
    if got != want and not per_channel:
        raise ShapeError(
            f"{layer}: thresholds of shape {got} do not fit activations of shape {want} (without the batch); "
            f"give shape={want} for one per neuron or shape={want[:1]} for one per channel."
        )


def split_pairs(z: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of (batch, C, …) along the channels: channel c of the first pairs with c + C/2 of the input."""
    if not torch.jit.is_tracing() and (z.dim() < 2 or z.shape[1] % 2):
        raise ShapeError(
            f"MaxMin pairs channel c with channel c + C/2 and needs an input (batch, C, …) with C even; got shape "
            f"{tuple(z.shape)}. Give the layer before it an even number of outputs."
        )
    x, y = z.chunk(2, dim=1)
    return x, y


def _clipped_relu(z: Tensor, raw: Tensor) -> Tensor:
    theta = broadcast_threshold(non_negative(raw), z)
    # clamp with tensor limits: its derivative with respect to θ is exactly 1 where z > θ, and NaN passes through.
    return torch.clamp(z, min=torch.zeros_like(theta), max=theta)


def _maxmin(z: Tensor) -> Tensor:
    x, y = split_pairs(z)
    return torch.cat([torch.maximum(x, y), torch.minimum(x, y)], dim=1)


def _clipped_maxmin(z: Tensor, ceiling: Tensor, floor: Tensor) -> Tensor:
    x, y = split_pairs(z)
    top = torch.minimum(torch.maximum(x, y), broadcast_threshold(ceiling, x))
    bottom = torch.maximum(torch.minimum(x, y), broadcast_threshold(floor, x))
    return torch.cat([top, bottom], dim=1)


def _traced_operator(name: str, function: Callable[..., Tensor]) -> type[torch.autograd.Function]:
    """An autograd function computing ``function`` that a trace records as the single operator ``lirpa_lip::name``."""

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            return function(*tensors)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            # The saved tensors keep their history, so differentiating through this derivative is right as well.
            wanted = [t for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True) if needed]
            higher_order = torch.is_grad_enabled()
            with torch.enable_grad():
                found = iter(torch.autograd.grad(function(*ctx.saved_tensors), wanted, grad, create_graph=higher_order))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)

        @staticmethod
        def symbolic(g: Any, *tensors: Any):
            node = g.op(f"lirpa_lip::{name}", *tensors)
            node.setType(tensors[0].type())
            return node

    Traced.__name__ = Traced.__qualname__ = name
    return Traced


_TracedClippedRelu = _traced_operator("ClippedRelu", _clipped_relu)
_TracedMaxMin = _traced_operator("MaxMin", _maxmin)
_TracedClippedMaxMin = _traced_operator("ClippedMaxMin", _clipped_maxmin)


def clipped_relu(z: Tensor, raw: Tensor) -> Tensor:
    """min(max(z, 0), θ) with θ = max(raw, 0).

    Args:
        z: pre-activations, shape (batch, *shape).
        raw: the stored threshold, shape ``shape``, (C,) or (C, 1, …).
    """
    return _TracedClippedRelu.apply(z, raw) if torch.jit.is_tracing() else _clipped_relu(z, raw)


def maxmin(z: Tensor) -> Tensor:
    """(max(x, y), min(x, y)) along the channels, where (x, y) are the two halves of z's channels.

    Raises:
        ShapeError: z has no channel axis, or an odd number of channels.
    """
    return _TracedMaxMin.apply(z) if torch.jit.is_tracing() else _maxmin(z)


def clipped_maxmin(z: Tensor, ceiling: Tensor, floor: Tensor) -> Tensor:
    """(min(max(x, y), a), max(min(x, y), b)) along the channels, where (x, y) are the two halves of z's channels.

    Args:
        z: pre-activations, shape (batch, C, …), C even.
        ceiling: a, of the shape of x without its batch, (C/2,) or (C/2, 1, …).
        floor: b, likewise.

    Raises:
        ShapeError: z has no channel axis, or an odd number of channels.
    """
    return (
        _TracedClippedMaxMin.apply(z, ceiling, floor) if torch.jit.is_tracing() else _clipped_maxmin(z, ceiling, floor)
    )
