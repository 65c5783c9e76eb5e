"""What a bound is held against: values, attacks, difference quotients and Jacobians of the model itself, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .regions import Ball

Model = Callable[[Tensor], Tensor]


class Violation(AssertionError):
    """A bound that is none."""


class _Largest(TorchFunctionMode):
    """Remembers the largest absolute value that any operation returned: what rounding is measured against."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 1.0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            with torch._C.DisableTorchFunction():
                finite = result.detach()[torch.isfinite(result)]
                if finite.numel():
                    self.value = max(self.value, float(finite.abs().max()))
        return result


def exact(model: nn.Module) -> nn.Module:
    """The same network in float64: what a certificate is about, but for float64's rounding."""
    return copy.deepcopy(model).double().eval()


def tolerance(model: Model, x: Tensor, rows: Tensor | None = None, unit: float = 1e-12) -> float:
    """What evaluating the model may be off by, in float64 unless a precision's own ``unit`` is given."""
    with torch.no_grad(), _Largest() as largest:
        model(x)
    scale = 1.0 if rows is None else max(1.0, float(rows.abs().sum(-1).max()))
    return unit * largest.value * scale


def row_values(model: Model, points: Tensor, rows: Tensor) -> Tensor:
    """``C f(x)`` at points ``(count, batch, *shape)``: ``(count, batch, specs)``."""
    with torch.no_grad():
        out = model(points.flatten(0, 1)).flatten(1).unflatten(0, points.shape[:2])
    return torch.einsum("bso,nbo->nbs", rows.double(), out)


def attacked(model: Model, region: Ball, row: Tensor, steps: int = 15) -> Tensor:
    """Points ``(1, batch, *shape)`` where ``row · f`` is small, by projected gradient descent; ``row (batch, out)``."""
    point = region.centre.double().unsqueeze(0)
    reach = region.eps.reshape(1, -1, *[1] * (point.ndim - 2))
    best, least = point, torch.full((point.shape[1],), math.inf, dtype=torch.float64)
    for step in range(steps):
        x = point.detach().requires_grad_()
        with torch.enable_grad():
            value = (model(x[0]).flatten(1) * row.double()).sum(1)
            (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
        better = value.detach() < least
        least = torch.where(better, value.detach(), least)
        best = torch.where(better.reshape(1, -1, *[1] * (point.ndim - 2)), point, best)
        if gradient is None:
            break
        size = gradient.flatten(2).norm(dim=2).clamp(min=1e-300).reshape(reach.shape)
        direction = gradient.sign() if math.isinf(region.norm) else gradient / size
        point = region.project(point - direction * reach * (0.7 if step < 5 else 0.25))
    return best.detach()


def check_values(
    model: nn.Module, region: Ball, rows: Tensor, lower, upper, name: str, generator, certified: bool = True
) -> None:
    """No value of ``C f`` in the region lies outside ``[lower, upper]``, which are ``(batch, specs)``.

    A certificate holds to float64's rounding of the *values*; bounds that auto_LiRPA computes in the model's precision
    may be off by that precision's rounding, and are not ours to mend.
    """
    for side, bound in (("lower", lower), ("upper", upper)):
        if bound is not None and bool(torch.isnan(bound).any()):
            raise Violation(f"{name}: {side} is NaN")
    precise = exact(model)
    points = [region.points(48, generator)]
    for s in range(min(3, rows.shape[1])):
        points += [attacked(precise, region, sign * rows[:, s]) for sign in (1, -1)]
    everywhere = torch.cat(points)
    values = row_values(precise, everywhere, rows)
    unit = 1e-12 if certified else 256 * torch.finfo(region.centre.dtype).eps
    slack = tolerance(precise, everywhere.flatten(0, 1), rows, unit)
    if lower is not None and float((lower.double() - values).max()) > slack:
        raise Violation(f"{name}: lower exceeds a value by {float((lower.double() - values).max()):.3g}")
    if upper is not None and float((values - upper.double()).max()) > slack:
        raise Violation(f"{name}: a value exceeds upper by {float((values - upper.double()).max()):.3g}")
    if (
        lower is not None
        and upper is not None
        and float((lower.double() - upper.double()).max()) > (0.0 if certified else slack)
    ):
        raise Violation(f"{name}: lower exceeds upper by {float((lower - upper).max()):.3g}")


def jacobians(model: Model, points: Tensor, rows: Tensor) -> Tensor:
    """Of ``C f`` at points ``(count, batch, *shape)``: ``(count, batch, specs, inputs)``."""
    x = points.flatten(0, 1).detach().requires_grad_()
    with torch.enable_grad():
        out = model(x).flatten(1)
        found = []
        for o in range(out.shape[1]):
            (g,) = torch.autograd.grad(out[:, o].sum(), x, retain_graph=True, allow_unused=True)
            found.append(torch.zeros_like(x).flatten(1) if g is None else g.flatten(1))
    jacobian = torch.stack(found, dim=1).unflatten(0, points.shape[:2])
    return torch.einsum("bso,nboi->nbsi", rows.double(), jacobian)


def quotients(model: Model, region: Ball, rows: Tensor, norm: float, whole: bool, generator) -> Tensor:
    """The largest difference quotient between points of the region seen, ``(batch, specs)`` or ``(batch,)``."""
    first, second = region.points(48, generator), region.points(48, generator)
    second = torch.cat([second[:24], region.project(first[24:] + 1e-4 * (second[24:] - first[24:]))])
    change = row_values(model, second, rows) - row_values(model, first, rows)
    length = (second - first).flatten(2).norm(p=norm, dim=2)
    size = change.norm(p=norm, dim=2) if whole else change.abs()
    length = length if whole else length.unsqueeze(2)
    slack = 4 * tolerance(model, torch.cat([first, second]).flatten(0, 1), rows)
    usable = length > 1e-9
    rate = torch.where(usable, (size - slack).clamp(min=0) / torch.where(usable, length, 1.0), 0.0)
    return rate.amax(0)
