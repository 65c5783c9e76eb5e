"""Quotients x / y with a divisor that varies, in auto_LiRPA's methods: a product with 1/y, for y on one side of 0.

With r = 1/y in [rl, ru], x r is bounded by McCormick's planes

    rl x + xl r − xl rl,  ru x + xu r − xu ru  ≤  x r  ≤  ru x + xl r − xl ru,  rl x + xu r − xu rl,

of which the one tighter in the middle of the box is taken; r by the lines of the convex (y < 0: concave) 1/y.
A constant x is a product with a number.
"""

from __future__ import annotations

from typing import Any

import torch
from auto_LiRPA.bound_ops import Bound
from auto_LiRPA.linear_bound import LinearBound
from torch import Tensor

from lirpa_lip.activations.curved import reciprocal
from lirpa_lip.activations.planes import Plane, Relaxation
from lirpa_lip.errors import DomainError
from lirpa_lip.wrapping.coefficients import dense
from lirpa_lip.wrapping.floors import raised

Interval = tuple[Tensor, Tensor]


class BoundDiv(Bound):
    """``x / y``."""

    needs_matrix = True
    nonlinear = True

    def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.requires_input_bounds = [0, 1]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x / y

    def interval_propagate(self, *v: Interval) -> Interval:
        self._check(*v[1])
        corners = torch.stack(torch.broadcast_tensors(*(a / b for a in v[0][:2] for b in v[1][:2])))
        return corners.amin(0), corners.amax(0)

    def planes(self, x: Interval, y: Interval) -> Relaxation:
        """Planes in (x, y), of the output's shape."""
        self._check(*y)
        x_low, x_high, y_low, y_high = torch.broadcast_tensors(*x, *y)
        low, high = 1 / y_high, 1 / y_low
        _, line, _ = reciprocal().relaxations(y_low, y_high)
        middle = (x_low + x_high) / 2, (low + high) / 2
        below = _steeper(middle, (low, x_low, -x_low * low), (high, x_high, -x_high * high), 1)
        above = _steeper(middle, (high, x_low, -x_low * high), (low, x_high, -x_high * low), -1)
        return Relaxation(_put_in(below, line, 0), _put_in(above, line, 1))

    def bound_backward(self, last_lA: Any, last_uA: Any, x: Bound, y: Bound, **_: Any):
        planes = self.planes((x.lower, x.upper), raised(self.inputs[1], y.lower, y.upper))
        found: list[list] = [[], []]
        biases: list[Any] = []
        for side, A in enumerate((last_lA, last_uA)):
            if A is None:
                found[0].append(None)
                found[1].append(None)
                biases.append(0)
                continue
            A = dense(A, self.output_shape[1:])
            parts = ((A.clamp(min=0), planes[side]), (A.clamp(max=0), planes[1 - side]))
            bias = sum((entries * plane.bias).flatten(2).sum(2) for entries, plane in parts)
            for i, operand in enumerate((x, y)):
                product = sum(entries * plane.slopes[i] for entries, plane in parts)
                if operand.perturbed:
                    found[i].append(self.broadcast_backward(product, operand))
                else:  # a constant needs no batch axis, which coefficients of it would
                    found[i].append(None)
                    bias = bias + (product * operand.lower).flatten(2).sum(2)
            biases.append(bias)
        return [tuple(found[0]), tuple(found[1])], *biases

    def bound_forward(self, dim_in: int, x: LinearBound, y: LinearBound) -> LinearBound:
        planes = self.planes((x.lower, x.upper), raised(self.inputs[1], y.lower, y.upper))
        sides = []
        for side, plane in enumerate(planes):
            weight: Any = 0.0
            bias = plane.bias
            for slope, operand in zip(plane.slopes, (x, y), strict=True):
                ends = ((operand.lw, operand.lb), (operand.uw, operand.ub))
                for part, (w, b) in ((slope.clamp(min=0), ends[side]), (slope.clamp(max=0), ends[1 - side])):
                    bias = bias + part * b
                    weight = weight if w is None else weight + part.unsqueeze(1) * w
            sides += [None if isinstance(weight, float) else weight, bias]
        return LinearBound(*sides)

    def infer_batch_dim(self, batch_size: int, *x: int) -> int:
        return max(x)

    def _check(self, lower: Tensor, upper: Tensor) -> None:
        reason = reciprocal().outside(lower, upper)
        if reason:
            raise DomainError(self.name or "", "BoundDiv", reason.replace("its input", "its divisor"))


def _steeper(middle: Interval, first: Any, second: Any, sign: int):
    """Of two planes (slope of x, slope of r, constant), elementwise, the higher in the middle (the lower for −1).

    Where only rounding tells them apart it is the first, so that intervals a little wider give planes a little looser.
    """
    parts = [torch.stack([a * middle[0], b * middle[1], c.expand_as(middle[0])]) for a, b, c in (first, second)]
    room = 1e-9 * sum(p.abs().sum(0) for p in parts).detach()
    takes = sign * (parts[0].sum(0) - parts[1].sum(0)) >= -room
    return tuple(torch.where(takes, p, q) for p, q in zip(first, second, strict=True))


def _put_in(plane: Any, line: Relaxation, side: int) -> Plane:
    """A plane in (x, r) as one in (x, y): r by its line of the side that the sign of its slope asks for."""
    of_x, of_r, constant = plane
    own, other = line[side], line[1 - side]
    rising, falling = of_r.clamp(min=0), of_r.clamp(max=0)
    slope = rising * own.slopes[0] + falling * other.slopes[0]
    size = constant.abs() + (of_r * own.bias).abs() + (of_r * other.bias).abs()
    slack = 8 * torch.finfo(size.dtype).eps * size.detach() * (1 if side else -1)
    return Plane((of_x, slope), constant + rising * own.bias + falling * other.bias + slack)
