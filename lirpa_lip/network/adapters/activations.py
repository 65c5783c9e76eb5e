"""Adapters of elementwise activations: each picks the record that describes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lirpa_lip.activations import curved, periodic
from lirpa_lip.activations import inverse_functions as inverse
from lirpa_lip.activations import smooth_functions as smooth
from lirpa_lip.activations.base import Activation
from lirpa_lip.activations.kinked_functions import absolute, clip, hard_sigmoid, leaky_relu, relu
from lirpa_lip.network.adapters.elementwise_affine import broadcast_to_sample
from lirpa_lip.network.adapters.products import multiply
from lirpa_lip.network.emit import GraphBuilder, Traced
from lirpa_lip.norms.linear_map import DiagonalMap


def _emit(builder: GraphBuilder, traced: Traced, activation: Activation) -> str:
    return builder.activation(traced.name, traced.operator, traced.varying(0), activation)


def simple(make: Callable[[], Activation]):
    """Adapter of an activation without attributes."""

    def adapter(builder: GraphBuilder, traced: Traced) -> str:
        if traced.parents[0] is None:
            raise traced.unsupported("its input is constant")
        return _emit(builder, traced, make())

    adapter.__doc__ = make.__doc__
    return adapter


RELU, ABS = simple(relu), simple(absolute)
SIGMOID, TANH, ERF, EXP = (simple(f) for f in (smooth.sigmoid, smooth.tanh, smooth.erf, smooth.exp))
SOFTPLUS, SILU, GELU, SELU = (simple(f) for f in (smooth.softplus, smooth.silu, smooth.gelu, smooth.selu))
HARD_SWISH = simple(smooth.hard_swish)


SQRT, LOG, RECIPROCAL = simple(curved.square_root), simple(curved.logarithm), simple(curved.reciprocal)
TAN, SIN, COS, ATAN = (simple(f) for f in (curved.Tangent, periodic.sine, periodic.cosine, smooth.arc_tangent))
SQUARE = simple(curved.square)
ASIN, ACOS = simple(inverse.arc_sine), simple(inverse.arc_cosine)
ASINH, ACOSH, ATANH = (simple(f) for f in (inverse.area_sine, inverse.area_cosine, inverse.area_tangent))


def power(builder: GraphBuilder, traced: Traced) -> str:
    """A power with one constant exponent."""
    exponent = torch.as_tensor(traced.constant(1))
    if exponent.numel() != 1:
        raise traced.unsupported("its exponents differ between entries; use one power for each exponent")
    if traced.parents[0] is None:
        raise traced.unsupported("its base is constant; write c ** x as exp(x * log(c))")
    return _emit(builder, traced, curved.power(float(exponent)))


def heaviside(builder: GraphBuilder, traced: Traced) -> str:
    """The step from 0 to 1, with a constant value at 0."""
    at_zero = torch.as_tensor(traced.constant(1)).to(builder.dtype)
    if not bool(((at_zero >= 0) & (at_zero <= 1)).all()):
        raise traced.unsupported("its value at 0 is not between 0 and 1")
    return _emit(builder, traced, curved.Step(lambda z: torch.where(z == 0, at_zero, (z > 0).to(z))))


def leaky(builder: GraphBuilder, traced: Traced) -> str:
    """LeakyReLU with its slope as an attribute."""
    return _emit(builder, traced, leaky_relu(traced.number(traced.attr.get("alpha", 0.01))))


def prelu(builder: GraphBuilder, traced: Traced) -> str:
    """PReLU: a learnable slope per channel, or one for all."""
    slope, shape = traced.constant(1), traced.shape
    if slope.numel() > 1 and slope.ndim == 1:
        slope = slope.reshape(-1, *[1] * (len(shape) - 1))
    return _emit(builder, traced, leaky_relu(broadcast_to_sample(slope, shape).unsqueeze(0)))


def elu(builder: GraphBuilder, traced: Traced) -> str:
    """ELU with its alpha as an attribute."""
    return _emit(builder, traced, smooth.elu(traced.number(traced.attr.get("alpha", 1.0))))


def hard_sigmoid_(builder: GraphBuilder, traced: Traced) -> str:
    """HardSigmoid with its slope and offset as attributes."""
    slope, offset = (float(traced.attr.get(name, default)) for name, default in (("alpha", 0.2), ("beta", 0.5)))
    return _emit(builder, traced, hard_sigmoid(slope, offset))


def clipped(builder: GraphBuilder, traced: Traced) -> str:
    """Clip, HardTanh and ReLU6, with the ends as attributes or constant inputs."""

    def end(name: str, index: int) -> float | None:
        value = traced.attr.get(name)
        if value is None and index < len(traced.parents):
            value = traced.constant(index)
        value = None if value is None else traced.number(value)
        return None if value is None or math.isinf(value) or abs(value) > 1e38 else value

    low, high = end("min", 1), end("max", 2)
    if low is not None and high is not None and low > high:
        low = high  # as PyTorch has it: the upper end is applied last
    if low is None and high is None:
        return traced.varying(0)
    return _emit(builder, traced, clip(low, high))


def clipped_relu(builder: GraphBuilder, traced: Traced) -> str:
    """``min(max(z, 0), theta)`` with theta per neuron or channel."""
    (theta,) = traced.bound.thresholds()
    return _emit(builder, traced, clip(0.0, theta.expand(1, *traced.shape)))


def gated(builder: GraphBuilder, traced: Traced) -> str:
    """Products: of ``x`` and ``sigmoid(x)`` (SiLU), or ``x`` and ``1 + erf(x/√2)`` (GELU), else with a constant."""
    first, second = traced.parents
    if first is None or second is None:
        return multiply(builder, traced)
    for base, gate in ((first, second), (second, first)):
        off = _off_the_gelu(builder, base, gate)
        if off is not None:
            # x (1 + erf(x/√2)) is twice the GELU; the factor 1/2 is a node of its own
            inner = builder.activation(f"{traced.name}:gelu", traced.operator, base, smooth.gelu(off))
            doubled = torch.full(traced.shape, 2.0, dtype=builder.dtype, device=builder.device)
            return builder.affine(traced.name, traced.operator, [inner], [DiagonalMap(doubled, traced.shape)])
        if _is_gate(builder, gate, base, "BoundSigmoid"):
            return builder.activation(traced.name, traced.operator, base, smooth.silu())
        if _is_gate(builder, gate, base, "BoundHardSigmoid") and _is_hard_swish_gate(builder, gate):
            return builder.activation(traced.name, traced.operator, base, smooth.hard_swish())
    return multiply(builder, traced)


def _is_gate(builder: GraphBuilder, gate: str, base: str, operator: str) -> bool:
    node = builder.nodes[gate]
    return node.operator == operator and node.parents == (base,)


def _is_hard_swish_gate(builder: GraphBuilder, gate: str) -> bool:
    activation: Any = builder.nodes[gate].activation
    low, high = activation.knots
    return abs(low + 3) < 1e-6 and abs(high - 3) < 1e-6


_TWO, _HALF = torch.tensor(2.0), torch.tensor(0.5)
#: 1/√2, and what it becomes where √2 or √½ is rounded to float32: in the lowering of GELU, or by hand.
_ROOTS = (0.5**0.5, 1 / float(_TWO.sqrt()), float(_HALF.sqrt()), float(1 / _TWO.sqrt()))


def _off_the_gelu(builder: GraphBuilder, base: str, gate: str) -> float | None:
    """How far s is from 1/√2, relatively, if ``gate`` is ``1 + erf(s · base)`` for one of the roots s; else None."""
    plus = builder.nodes[gate]
    if plus.operator != "BoundAdd" or len(plus.parents) != 1 or not bool(torch.as_tensor(plus.bias == 1).all()):
        return None
    error = builder.nodes[plus.parents[0]]
    if error.operator != "BoundErf":
        return None
    divided = builder.nodes[error.parents[0]]
    if divided.maps is None or divided.parents != (base,):
        return None
    factor = divided.maps[0].forward(torch.ones(1, *divided.shape, dtype=builder.dtype, device=builder.device))
    root = min(_ROOTS, key=lambda r: abs(r - float(factor.flatten()[0])))
    if not bool(((factor - root).abs() <= 1e-15).all()):
        return None
    return abs(root / _ROOTS[0] - 1)
