"""The input region: a ball in an ℓp norm, of one radius or of one radius per sample, optionally cut by a box."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import auto_LiRPA.perturbations
import numpy as np
import torch
from auto_LiRPA.patches import Patches
from auto_LiRPA.utils import eyeC
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError
from lirpa_lip.precision import rounded_up


class PerturbationLpNorm(auto_LiRPA.perturbations.PerturbationLpNorm):
    """The region {x : ‖x − x₀‖_p ≤ eps, x_L ≤ x ≤ x_U}, where x₀ is the tensor it is attached to.

    auto_LiRPA's class of the same name, with checked arguments and with one radius per sample allowed, which
    auto_LiRPA's own methods refuse for finite p. As there, for p = ∞ a given box takes the place of the radius. For
    finite p auto_LiRPA's linear bounds ignore the box, so that they hold on a larger region: valid, not tight.

    Args:
        eps: the radius, a float or a tensor of shape () or (batch,), finite and ≥ 0.
        norm: p, from 1 to ∞.
        x_L, x_U: the box, each None, a number, or of a shape that broadcasts to the input's.
        options: further arguments of auto_LiRPA's class (they differ between its versions).

    Raises:
        ConfigError: p < 1, eps < 0, an empty box, or what is no number.
        ShapeError: eps has more than one dimension, or not one entry for each sample.
        NonFiniteError: eps is NaN or infinite, the box holds a NaN, or the input does.
    """

    eps: Any  # auto_LiRPA assigns these
    x_L: Any
    x_U: Any

    def __init__(
        self,
        eps: float | Tensor = 0.0,
        norm: float = np.inf,
        x_L: Tensor | float | None = None,
        x_U: Tensor | float | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(norm, numbers.Real) or not norm >= 1:
            raise ConfigError(f"norm={norm!r} is no norm; use a number from 1 to infinity.")
        _check_radius(eps)
        x_L, x_U = (
            torch.tensor(float(end), dtype=torch.float64) if isinstance(end, numbers.Real) else end
            for end in (x_L, x_U)
        )
        _check_box(x_L, x_U)
        with np.errstate(divide="ignore"):  # for p = 1 the dual norm is 1/0, rightly ∞
            super().__init__(eps=eps, norm=norm, x_L=x_L, x_U=x_U, **options)

    def set_eps(self, eps: float | Tensor) -> None:
        _check_radius(eps)
        super().set_eps(eps)

    def init(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.isfinite(x).all():
            raise NonFiniteError("the input")
        with self._region_beside(x, x.ndim - 1):
            return super().init(x, *args, **kwargs)

    def concretize(self, x: Tensor, A: Any, *args: Any, **kwargs: Any) -> Any:
        if math.isinf(self.norm) or (isinstance(A, Patches) and A.identity == 1):
            trailing = x.ndim - 1  # the radius meets x itself
        elif isinstance(A, eyeC):
            trailing = 2  # it meets x of shape (batch, inputs, 1)
        else:
            trailing = 1  # it meets dual norms of shape (batch, specs)
        with self._region_beside(x, trailing):
            return super().concretize(x, A, *args, **kwargs)

    @contextmanager
    def _region_beside(self, x: Tensor, trailing: int) -> Iterator[None]:
        """Region in the precision of x, rounded outward; a radius per sample with as many trailing dimensions as the
        parent's formula needs to broadcast it."""
        given = eps, low, high = self.eps, self.x_L, self.x_U
        if not isinstance(eps, Tensor):
            self.eps = float(rounded_up(eps, x.dtype))
        elif eps.ndim != 1:
            self.eps = rounded_up(eps, x.dtype, x.device)
        elif eps.shape[0] not in (1, x.shape[0]):
            raise ShapeError(f"eps has {eps.shape[0]} entries for a batch of {x.shape[0]}; give one for each sample.")
        else:
            self.eps = rounded_up(eps, x.dtype, x.device).reshape(-1, *[1] * trailing)
        self.x_L = low if low is None else -_end(-low, x)
        self.x_U = high if high is None else _end(high, x)
        try:
            yield
        finally:
            self.eps, self.x_L, self.x_U = given


def _end(given: Tensor, x: Tensor) -> Tensor:
    """An end of the box in the precision of x, rounded up; one number for all features as auto_LiRPA wants it."""
    end = given if given.dtype == x.dtype else rounded_up(given, x.dtype)
    return end.to(x.device).expand_as(x) if end.ndim == 0 else end


def _check_radius(eps: float | Tensor) -> None:
    if not isinstance(eps, numbers.Real | Tensor | np.ndarray):
        raise ConfigError(f"eps={eps!r} is no radius; give a number, or a tensor with one for each sample.")
    values = torch.as_tensor(eps)
    if values.ndim > 1:
        raise ShapeError(f"eps has shape {tuple(values.shape)}; give one number, or one for each sample.")
    if not torch.isfinite(values).all():
        raise NonFiniteError("eps", "give a finite radius")
    if (values < 0).any():
        raise ConfigError(f"eps must not be negative, but its least value is {values.min().item()}.")


def _check_box(x_L: Tensor | None, x_U: Tensor | None) -> None:
    for side, name in ((x_L, "x_L"), (x_U, "x_U")):
        if side is not None and not isinstance(side, Tensor):
            raise ConfigError(f"{name} is a {type(side).__name__}; give a tensor, or one number.")
        if side is not None and torch.isnan(side).any():
            raise NonFiniteError(name, "give numbers, or leave it out")
    if x_L is not None and x_U is not None and (x_L > x_U).any():
        raise ConfigError("x_L exceeds x_U somewhere, so the box is empty; swap or correct them.")


def check_ball_and_box(perturbation: Any, x: Tensor) -> None:
    """Refuses a ball (finite p) whose box cannot be meant as one that cuts it.

    auto_LiRPA ignores a box beside a ball, and its examples give ``x_L = x_U = x``, which would leave one point.

    Raises:
        ConfigError: the box beside a ball of positive radius is half given or has no width anywhere, or the class is
            auto_LiRPA's own.
    """
    ends = [getattr(perturbation, name, None) for name in ("x_L", "x_U")]
    norm, eps = getattr(perturbation, "norm", math.inf), getattr(perturbation, "eps", 0.0)
    if math.isinf(norm) or all(end is None for end in ends):
        return
    if not isinstance(perturbation, PerturbationLpNorm):
        raise ConfigError(
            f"auto_LiRPA's own PerturbationLpNorm ignores x_L and x_U for norm={norm}; leave them out for the ball, or "
            "use lirpa_lip.PerturbationLpNorm for the part of the ball inside that box."
        )
    radius = torch.as_tensor(eps, device=x.device).reshape(-1)
    if any(end is None for end in ends):
        if bool((radius > 0).any()):
            raise ConfigError(
                "of the box beside a ball only one of x_L and x_U is given; give both (-inf or inf where a side is "
                "free), or neither."
            )
        return
    low, high = (torch.as_tensor(end, device=x.device).expand_as(x).flatten(1) for end in ends)
    if bool(((low == high).all(1) & (radius > 0)).any()):
        raise ConfigError(
            "x_L equals x_U everywhere, which leaves one point of a ball of positive radius; leave both out for the "
            "whole ball, or set eps=0 for the point."
        )


def in_region(x: Tensor, region: Any) -> auto_LiRPA.BoundedTensor:
    """``BoundedTensor(x, region)``, which auto_LiRPA cannot make while somebody watches operations (a FLOP counter)."""
    with _disable_current_modes():
        return auto_LiRPA.BoundedTensor(x, region)
