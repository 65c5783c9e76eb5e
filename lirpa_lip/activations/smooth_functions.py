"""Smooth activations by name: each a function, its derivatives and the points where those have extremes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lirpa_lip.activations.smooth import Smooth


def _sigmoid_derivative(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s)


def _silu_derivative(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_derivative(z: Tensor) -> Tensor:
    # z is clamped because inf * 0 is NaN; the derivative is 0 or 1 to machine precision out there
    z = z.clamp(-40, 40)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * _normal_density(z)


def sigmoid() -> Smooth:
    """``1 / (1 + exp(-z))``; steepest at 0."""

    def curvature(z: Tensor) -> Tensor:
        return _sigmoid_derivative(z) * -torch.tanh(z / 2)

    extrema = [-math.log(2 + math.sqrt(3)), math.log(2 + math.sqrt(3))]
    return Smooth(
        torch.sigmoid, _sigmoid_derivative, slope_extrema=[0.0], curvature=curvature, curvature_extrema=extrema
    )


def tanh() -> Smooth:
    """``tanh(z)``; steepest at 0."""

    def curvature(z: Tensor) -> Tensor:
        t = torch.tanh(z)
        return -2 * t * (1 - t * t)

    extrema = [-math.atanh(math.sqrt(1 / 3)), math.atanh(math.sqrt(1 / 3))]
    return Smooth(
        *(torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
        slope_extrema=[0.0],
        curvature=curvature,
        curvature_extrema=extrema,
    )


def softplus(beta: float = 1.0) -> Smooth:
    """``log(1 + exp(beta z)) / beta``; the derivative, a sigmoid, is monotone.

    PyTorch's own jumps down by 2e-9 / beta where it turns into the identity, at ``beta z = 20``.
    """
    found = Smooth(
        lambda z: torch.logaddexp(beta * z, torch.zeros_like(z)) / beta,
        lambda z: torch.sigmoid(beta * z),
        curvature=lambda z: beta * _sigmoid_derivative(beta * z),
        curvature_extrema=[0.0],
    )
    found.value_slack = 2.1e-9 / beta
    return found


def elu(alpha: float = 1.0) -> Smooth:
    """``z`` for ``z > 0``, ``alpha (exp(z) - 1)`` below; the derivative jumps from ``alpha`` to 1 at 0."""

    def derivative(z: Tensor) -> Tensor:
        return torch.where(z > 0, torch.ones_like(z), alpha * torch.exp(z.clamp(max=0)))

    return Smooth(lambda z: F.elu(z, alpha=alpha), derivative, value_extrema=[0.0], jumps=[(0.0, alpha, 1.0)])


def selu() -> Smooth:
    """``scale * elu(z, alpha)`` with the constants of Klambauer et al., NeurIPS 2017."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    inner = elu(alpha)
    return Smooth(
        lambda z: scale * inner.fn(z),
        lambda z: scale * inner.derivative(z),
        value_extrema=[0.0],
        jumps=[(0.0, scale * alpha, scale)],
    )


def hard_swish() -> Smooth:
    """``z * min(max(z / 6 + 1/2, 0), 1)``: a parabola on [-3, 3], where the derivative is ``z / 3 + 1/2``."""

    def derivative(z: Tensor) -> Tensor:
        return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5)).to(z.dtype)

    jumps = [(-3.0, 0.0, -0.5), (3.0, 1.5, 1.0)]
    return Smooth(lambda z: z * (z / 6 + 0.5).clamp(0, 1), derivative, value_extrema=[-1.5], jumps=jumps)


# f' = 0 and f'' = 0 of x * sigmoid(x): the minimum of the value, and the two extremes of the slope
SILU_MINIMUM, SILU_INFLECTION = -1.2784645427610738, 2.3993572805154668


# the third derivative of x * sigmoid(x) is 0 here, beside 0
SILU_BEND = 3.4358409935351100


# x * Phi(x): the minimum of the value; f''(x) = phi(x) (2 - x^2) vanishes at +-sqrt 2
GELU_MINIMUM = -0.7517915246935645


def silu() -> Smooth:
    """``z * sigmoid(z)``."""

    def curvature(z: Tensor) -> Tensor:
        # z is clamped because inf * 0 is NaN
        return _sigmoid_derivative(z) * (2 - z.clamp(-1000, 1000) * torch.tanh(z / 2))

    return Smooth(
        *(F.silu, _silu_derivative, [SILU_MINIMUM], [-SILU_INFLECTION, SILU_INFLECTION]),
        curvature=curvature,
        curvature_extrema=[-SILU_BEND, 0.0, SILU_BEND],
    )


def gelu(off: float = 0.0) -> Smooth:
    """``z * Phi(z)``, ``Phi`` the normal distribution function.

    Args:
        off: how far the network's ``erf(s z)`` may be from s = 1/√2, relatively: that moves values by
            ``z² phi(z) off`` at most, no more than 0.3 off.
    """

    def curvature(z: Tensor) -> Tensor:
        z = z.clamp(-40, 40)
        return _normal_density(z) * (2 - z * z)

    found = Smooth(
        *(F.gelu, _gelu_derivative, [GELU_MINIMUM], [-math.sqrt(2), math.sqrt(2)]),
        curvature=curvature,
        curvature_extrema=[-2.0, 0.0, 2.0],
    )
    found.value_slack = 0.3 * off
    return found


def erf() -> Smooth:
    """The error function."""
    scale = 2 / math.sqrt(math.pi)
    return Smooth(
        *(torch.erf, lambda z: scale * torch.exp(-z * z)),
        slope_extrema=[0.0],
        curvature=lambda z: -2 * z.clamp(-40, 40) * scale * torch.exp(-z * z),
        curvature_extrema=[-math.sqrt(0.5), math.sqrt(0.5)],
    )


def exp() -> Smooth:
    """``exp(z)``; derivative monotone."""
    return Smooth(torch.exp, torch.exp, curvature=torch.exp)


def arc_tangent() -> Smooth:
    """``atan(z)``; steepest at 0."""
    return Smooth(
        *(torch.atan, lambda z: 1 / (1 + z * z)),
        slope_extrema=[0.0],
        curvature=lambda z: -2 * z / (1 + z * z).square(),
        curvature_extrema=[-math.sqrt(1 / 3), math.sqrt(1 / 3)],
    )


def softsign() -> Smooth:
    """``z / (1 + |z|)``; steepest at 0."""
    return Smooth(lambda z: z / (1 + z.abs()), lambda z: (1 + z.abs()) ** -2.0, slope_extrema=[0.0])


def log_sigmoid() -> Smooth:
    """``log(1 / (1 + exp(-z)))``; the derivative, a falling sigmoid, is monotone."""
    return Smooth(
        *(lambda z: -torch.logaddexp(-z, torch.zeros_like(z)), lambda z: torch.sigmoid(-z)),
        curvature=lambda z: -_sigmoid_derivative(z),
        curvature_extrema=[0.0],
    )


def log_cosh() -> Smooth:
    """``√2 log(2 cosh(z/√2))``, of slope ``tanh(z/√2)``: the smooth ``|z|`` of a log-sum-exp of two values."""
    root = math.sqrt(2)

    def fn(z: Tensor) -> Tensor:
        return z.abs() + root * torch.log1p(torch.exp(-root * z.abs()))

    return Smooth(
        *(fn, lambda z: torch.tanh(z / root)),
        value_extrema=[0.0],
        curvature=lambda z: (1 - torch.tanh(z / root) ** 2) / root,
        curvature_extrema=[0.0],
    )


# f' = 0 and f'' = 0 of x tanh(softplus(x)), and of the tanh form of GELU
MISH_MINIMUM, MISH_INFLECTIONS = -1.1924312145154952, (-2.256376396360793, 1.4905711794854285)

GELU_TANH_MINIMUM, GELU_TANH_INFLECTION = -0.7524614220710163, 1.4185040087908284


def mish() -> Smooth:
    """``z tanh(log(1 + exp z))``."""

    def derivative(z: Tensor) -> Tensor:
        t = torch.tanh(torch.logaddexp(z, torch.zeros_like(z)))
        z = z.clamp(-100, 100)  # inf * 0 is NaN; the second term is 0 out there
        return t + z * torch.sigmoid(z) * (1 - t * t)

    return Smooth(F.mish, derivative, [MISH_MINIMUM], MISH_INFLECTIONS)


_GELU_SCALE, _GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu_tanh() -> Smooth:
    """``z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2``."""

    def derivative(z: Tensor) -> Tensor:
        z = z.clamp(-40, 40)
        t = torch.tanh(_GELU_SCALE * (z + _GELU_CUBE * z**3))
        return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _GELU_SCALE * (1 + 3 * _GELU_CUBE * z * z)

    return Smooth(lambda z: F.gelu(z, approximate="tanh"), derivative, [GELU_TANH_MINIMUM],
                  [-GELU_TANH_INFLECTION, GELU_TANH_INFLECTION])  # fmt: skip
