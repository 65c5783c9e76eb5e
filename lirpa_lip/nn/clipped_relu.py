"""Clipped ReLU: a ReLU that saturates at a learnable threshold.

A neuron whose pre-activation stays above the threshold is constant, just as one whose stays below zero is, and drops
out of a local Lipschitz bound. Source: Huang et al., "Training Certifiably Robust Neural Networks with Efficient Local
Lipschitz Bounds", NeurIPS 2021 (arXiv 2111.01395).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError
from lirpa_lip.nn.functional import check_threshold_shape, clipped_relu, non_negative


def as_shape(shape: int | tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """``shape`` as a tuple of positive integers; raises :class:`ConfigError` where it is none."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes or any(size < 1 for size in sizes):
        raise ConfigError(f"shape={shape!r} must hold at least one size, and positive ones only.")
    return sizes


def filled(shape: tuple[int, ...], value: float | Tensor, name: str) -> Tensor:
    """A fresh tensor of ``shape`` holding ``value``, which must be finite and broadcast to it."""
    value = torch.as_tensor(value)
    value = value.detach().to(value.dtype if value.is_floating_point() else torch.get_default_dtype())
    if not bool(torch.isfinite(value).all()):
        raise ConfigError(f"{name} must be finite; to switch clipping off use torch.nn.ReLU or MaxMin instead.")
    try:
        return value.expand(shape).clone()
    except RuntimeError as error:
        raise ConfigError(f"{name} of shape {tuple(value.shape)} does not broadcast to {shape}.") from error


class ClippedReLU(nn.Module):
    """y = min(max(z, 0), θ), elementwise, with θ ≥ 0 learnable.

    Its slope is 0 or 1, so it is 1-Lipschitz; on an interval [l, u] it is constant if u ≤ 0 or l ≥ θ, and the
    identity if 0 ≤ l and u ≤ θ.

    θ = max(``raw_threshold``, 0). ``raw_threshold`` is what is trained, saved and traced; where it has become negative
    its gradient passes only if descent raises it, so a threshold that has stepped over zero can come back (see
    :func:`lirpa_lip.nn.functional.non_negative`).

    Args:
        shape: ``z.shape[1:]`` for one threshold per neuron; ``(C,)`` (or an integer) or ``(C, 1, 1)`` for one per
            channel, the channels being axis 1 of z.
        threshold: initial θ ≥ 0, a number or a tensor that broadcasts to ``shape``.
        learnable: whether ``raw_threshold`` is a parameter (else a buffer, saved but never trained).

    Shape: ``(batch, *shape)`` → the same.

    Raises:
        ConfigError: a threshold is negative or not finite, or ``shape`` is none.
        ShapeError: the input does not fit ``shape``.

    Source: Huang, Zhang, Shi, Kolter & Anandkumar, NeurIPS 2021, arXiv 2111.01395.

    Example:
        >>> ClippedReLU(3, threshold=1.0)(torch.tensor([[-1.0, 0.5, 2.0]])).tolist()
        [[0.0, 0.5, 1.0]]
    """

    raw_threshold: Tensor

    def __init__(
        self, shape: int | tuple[int, ...] | torch.Size, threshold: float | Tensor = 1.0, learnable: bool = True
    ) -> None:
        super().__init__()
        raw = filled(as_shape(shape), threshold, "threshold")
        if bool((raw < 0).any()):
            raise ConfigError("threshold must be ≥ 0: the output of a clipped ReLU lies in [0, threshold].")
        if learnable:
            self.raw_threshold = nn.Parameter(raw)
        else:
            self.register_buffer("raw_threshold", raw)

    @property
    def threshold(self) -> Tensor:
        """θ ≥ 0, differentiable with respect to ``raw_threshold`` and of the same shape."""
        return non_negative(self.raw_threshold)

    def forward(self, z: Tensor) -> Tensor:
        """min(max(z, 0), θ) of ``z``, ``(batch, *shape)``."""
        check_threshold_shape(self.raw_threshold, z, "ClippedReLU")
        return clipped_relu(z, self.raw_threshold)

    def extra_repr(self) -> str:
        learnable = isinstance(self.raw_threshold, nn.Parameter)
        return f"shape={tuple(self.raw_threshold.shape)}, learnable={learnable}"
