"""An ℓp ball (finite p) at the input, carried through the operators that leave it an axis-aligned ellipsoid.

Shifts, scales, batch norm in eval mode and reshapes act on each entry alone, so that the ball {x₀ + u : ‖u‖_p ≤ ε}
becomes {c + d ∘ u}. A Linear or Conv behind them takes on it exactly the values, in each row w,
    w·c ± ε ‖w ∘ d‖_q,   1/p + 1/q = 1   (Hölder's inequality, which is attained).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from auto_LiRPA import bound_ops as ops
from auto_LiRPA.perturbations import PerturbationLpNorm as AutoLirpaPerturbation
from torch import Tensor

from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm, check_ball_and_box
from lirpa_lip.errors import ConfigError
from lirpa_lip.precision import rounded_up

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Ball:
    """The values {centre + half_axis ∘ u : ‖u‖_p ≤ radius} which also lie in [lower, upper], at one node.

    Every entry goes with an entry of u of its own. All tensors have the shape of the node's value, batch first.
    """

    centre: Tensor
    half_axis: Tensor
    lower: Tensor
    upper: Tensor
    perturbation: AutoLirpaPerturbation
    shared: bool
    """half_axis (≥ 0) is the same for all samples"""

    @property
    def box(self) -> Interval:
        return self.lower, self.upper

    @property
    def is_cut(self) -> bool:
        return any(end is not None for end in _box(self.perturbation))


def is_ball(node: Any) -> bool:
    """Whether the node is an input (or a node made one) whose perturbation is an ℓp ball with finite p."""
    perturbation = getattr(node, "perturbation", None)
    return (
        isinstance(perturbation, AutoLirpaPerturbation)
        and not math.isinf(perturbation.norm)
        and not isinstance(node, ops.BoundParams)  # a perturbed weight: its radius is per row, and Linear handles it
    )


def is_affine(node: Any) -> bool:
    """Whether the node's operator takes exactly known values on a ball: Linear, MatMul by a constant, Conv."""
    return type(node) in _AFFINE


def input_ball(node: Any) -> Ball:
    """The ball at an input for which `is_ball` holds.

    Raises:
        ConfigError: the box x_L, x_U lies outside the ball's own box, or the radius is one that auto_LiRPA's own
            perturbation class would broadcast the wrong way.
    """
    centre, perturbation = node.center, node.perturbation
    if isinstance(perturbation, PerturbationLpNorm):
        check_ball_and_box(perturbation, centre)
    radius = _radius(perturbation, centre)
    lower, upper = centre - radius, centre + radius
    low, high = _box(perturbation)
    if low is not None:
        lower = torch.maximum(lower, -rounded_up(-low, centre.dtype))
    if high is not None:
        upper = torch.minimum(upper, rounded_up(high, centre.dtype))
    if (lower > upper).any():
        raise ConfigError("x_L and x_U leave nothing of the ball: they must hold a point within eps of the input.")
    return Ball(centre, torch.ones_like(centre), lower, upper, perturbation, shared=True)


def _box(perturbation: AutoLirpaPerturbation) -> tuple[Tensor | None, Tensor | None]:
    """The box that cuts the ball. auto_LiRPA's own class has none: there x_L and x_U mean nothing for finite p."""
    if isinstance(perturbation, PerturbationLpNorm):
        return perturbation.x_L, perturbation.x_U
    return None, None


def ball_at(module: Any, node: Any) -> Ball | None:
    """The ellipsoid of the node's values, or None where they are no axis-aligned image of one input's ball."""
    if is_ball(node):
        return input_ball(node)
    rule = _RULES.get(type(node))
    perturbed = [position for position, parent in enumerate(node.inputs) if parent.perturbed]
    if rule is None or len(perturbed) != 1:
        return None
    ball = ball_at(module, node.inputs[perturbed[0]])
    if ball is None:
        return None
    constants = [None if parent.perturbed else module.get_forward_value(parent) for parent in node.inputs]
    return rule(node, ball, constants)


def ball_interval(module: Any, node: Any, C: Tensor | None = None) -> Interval | None:
    """The interval of a node (of ``C @ node``, given C) whose values the ball determines, or None elsewhere.

    The ellipsoid's box, or the exact range of a Linear or Conv on it; with x_L, x_U given, cut with the box's image.
    """
    affine = _AFFINE.get(type(node))
    if affine is None:
        ball = ball_at(module, node) if C is None else None
        return None if ball is None else ball.box
    if any(parent.perturbed for parent in node.inputs[1:]) or (C is not None and not isinstance(node, ops.BoundLinear)):
        return None
    ball = ball_at(module, node.inputs[0])
    if ball is None or getattr(node, "transA", False):
        return None
    parameters = [module.get_forward_value(parent) for parent in node.inputs[1:]]
    centre, deviation = affine(node, ball, *parameters, C=C)
    deviation = rounded_up(deviation, centre.dtype) * _radius(ball.perturbation, centre)
    lower, upper = centre - deviation, centre + deviation
    if ball.is_cut:
        options = {} if C is None else {"C": C}
        box = node.interval_propagate(ball.box, *[(value, value) for value in parameters], **options)
        lower, upper = torch.maximum(lower, box[0]), torch.minimum(upper, box[1])
    return lower, upper


def _radius(perturbation: AutoLirpaPerturbation, centre: Tensor) -> float | Tensor:
    """The radius in the precision of ``centre``, rounded up, and so that it broadcasts against it."""
    eps = perturbation.eps
    if not isinstance(eps, Tensor):
        return float(rounded_up(eps, centre.dtype))
    if eps.numel() > 1 and not isinstance(perturbation, PerturbationLpNorm):
        raise ConfigError("auto_LiRPA's PerturbationLpNorm takes one eps for all samples; use lirpa_lip's instead.")
    return rounded_up(eps, centre.dtype, centre.device).reshape(-1, *[1] * (centre.ndim - 1))


# Rules: (node, ball at its perturbed input, the values of its other inputs) -> ball at the node


def _image(ball: Ball, function: Callable[[Tensor], Tensor], factor: Tensor | None = None) -> Ball | None:
    """The image under an elementwise affine function with slope ``factor``; None where broadcasting repeats entries."""
    centre, one, other = (function(value) for value in (ball.centre, *ball.box))
    if centre.shape != ball.centre.shape:
        return None
    half_axis = ball.half_axis if factor is None else ball.half_axis * factor.abs()
    shared = ball.shared and (factor is None or factor.ndim < centre.ndim or factor.shape[0] == 1)
    return Ball(centre, half_axis, torch.minimum(one, other), torch.maximum(one, other), ball.perturbation, shared)


def _add(node: Any, ball: Ball, constants: list) -> Ball | None:
    constant = constants[0] if constants[1] is None else constants[1]
    return _image(ball, lambda value: value + constant)


def _subtract(node: Any, ball: Ball, constants: list) -> Ball | None:
    minuend, subtrahend = constants
    return _image(ball, lambda value: value - subtrahend if minuend is None else minuend - value)


def _multiply(node: Any, ball: Ball, constants: list) -> Ball | None:
    factor = constants[0] if constants[1] is None else constants[1]
    return _image(ball, lambda value: value * factor, factor)


def _divide(node: Any, ball: Ball, constants: list) -> Ball | None:
    divisor = constants[1]
    if divisor is None:
        return None  # constant / x is not affine
    return _image(ball, lambda value: value / divisor, 1.0 / divisor)


def _negate(node: Any, ball: Ball, constants: list) -> Ball | None:
    return _image(ball, torch.neg)


def _batch_norm(node: Any, ball: Ball, constants: list) -> Ball | None:
    if node.training or not (node.use_mean and node.use_var and node.use_affine):
        return None
    shape = (1, -1) + (1,) * (ball.centre.ndim - 2)
    weight, bias, mean, variance = (value.reshape(shape) for value in constants[1:])
    factor = weight / torch.sqrt(variance + node.eps)
    return _image(ball, lambda value: (value - mean) * factor + bias, factor)


def _reshape(node: Any, ball: Ball, constants: list) -> Ball | None:
    perm = getattr(node, "perm", (0,))
    if perm[0] != 0 or (node.training and isinstance(node, ops.BoundDropout)):
        return None
    tensors = (ball.centre, ball.half_axis, *ball.box)
    centre, half_axis, lower, upper = (node.forward(value, *constants[1:]) for value in tensors)
    if centre.shape[0] != ball.centre.shape[0]:
        return None  # no longer batch first
    return Ball(centre, half_axis, lower, upper, ball.perturbation, ball.shared)


_RULES: dict[type, Callable[[Any, Ball, list], Ball | None]] = {
    ops.BoundAdd: _add,
    ops.BoundSub: _subtract,
    ops.BoundMul: _multiply,
    ops.BoundDiv: _divide,
    ops.BoundNeg: _negate,
    ops.BoundBatchNormalization: _batch_norm,
    ops.BoundReshape: _reshape,
    ops.BoundFlatten: _reshape,
    ops.BoundTranspose: _reshape,
    ops.BoundSqueeze: _reshape,
    ops.BoundUnsqueeze: _reshape,
    ops.BoundIdentity: _reshape,
    ops.BoundDropout: _reshape,
}


# Affine consumers: (node, ball at its input, weight, bias, C) -> centre, and deviation per unit of radius in float64


def _linear(node: Any, ball: Ball, weight: Tensor, bias: Tensor | None = None, C: Tensor | None = None) -> Interval:
    centre, weight, bias = node._preprocess(ball.centre, weight, bias)
    if C is not None:
        weight, bias = C.matmul(weight), None if bias is None else C.matmul(bias)
    if weight.ndim == 3:
        centre = weight.matmul(centre.unsqueeze(-1)).squeeze(-1)
    else:
        centre = centre.matmul(weight.t())
    if bias is not None:
        centre = centre + bias
    half_axis, weight = _in_float64(ball, weight)
    if half_axis.ndim == 2 and (weight.ndim == 3 or len(half_axis) == 1):
        norms = torch.linalg.vector_norm(weight * half_axis.unsqueeze(1), _dual(ball), dim=-1)
        return centre, norms
    return centre, _norms_by_powers(ball, half_axis, weight, lambda d, w: d.matmul(w.t()))


def _conv(node: Any, ball: Ball, weight: Tensor, bias: Tensor | None = None, C: Tensor | None = None) -> Interval:
    convolve = getattr(node, "F_conv", F.conv2d)  # auto_LiRPA 0.3 has two-dimensional convolutions only
    geometry = node.stride, node.padding, node.dilation, node.groups
    centre = convolve(ball.centre, weight, bias, *geometry)
    half_axis, weight = _in_float64(ball, weight)
    return centre, _norms_by_powers(ball, half_axis, weight, lambda d, w: convolve(d, w, None, *geometry))


_AFFINE: dict[type, Callable[..., Interval]] = {
    ops.BoundLinear: _linear,
    ops.BoundMatMul: _linear,
    ops.BoundConv: _conv,
}


def _dual(ball: Ball) -> float:
    p = ball.perturbation.norm
    return math.inf if p == 1 else p / (p - 1)


def _in_float64(ball: Ball, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Half axes (one sample's where all share them) and weight. A root magnifies what float32 or TF32 rounds off."""
    return (ball.half_axis[:1] if ball.shared else ball.half_axis).double(), weight.double()


def _norms_by_powers(
    ball: Ball, half_axis: Tensor, weight: Tensor, apply: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """‖w ∘ d‖_q of all rows w at once: the q-th root of the map with weights |w|^q, applied to d^q.

    For q > 2 powers would underflow; there ‖·‖₂ ≥ ‖·‖_q takes its place. The root's gradient at 0 is set to 0.
    """
    q = min(_dual(ball), 2.0)
    powers = apply(half_axis**q, weight.abs() ** q)
    positive = powers > 0
    return torch.where(positive, torch.where(positive, powers, torch.ones_like(powers)) ** (1.0 / q), powers * 0.0)
