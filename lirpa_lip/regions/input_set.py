"""The closed set of inputs a Jacobian bound speaks of: a box, cut by an ℓ₂ ball where there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError
from lirpa_lip.precision import next_above, next_below
from lirpa_lip.regions.region import box_ball_support, safe_norm


@dataclass(frozen=True)
class InputSet:
    """``{x : low ≤ x ≤ high}``, and ``‖x − centre‖₂ ≤ radius`` where a radius is given; always closed.

    Attributes:
        low, high, centre: ``(batch, *shape)``. Branch and bound shrinks the box, so the centre may lie outside it.
        radius: ``(batch,)``, or ``None`` for a box alone.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    radius: Tensor | None = None

    @classmethod
    def box(cls, centre: Tensor, low: Tensor, high: Tensor) -> InputSet:
        """A box around ``centre``.

        Raises:
            NonFiniteError: an end is NaN or infinite.
            ConfigError: ``low > high`` somewhere, or the centre lies outside.
        """
        low, high = (
            torch.as_tensor(t, dtype=centre.dtype, device=centre.device).expand_as(centre) for t in (low, high)
        )
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all() & torch.isfinite(centre).all()):
            raise NonFiniteError("the input box", "give finite ends (x_L, x_U, or a finite eps)")
        if bool((low > high).any()):
            raise ConfigError("the input box is empty: x_L > x_U somewhere.")
        if bool(((centre < low) | (centre > high)).any()):
            raise ConfigError("an input lies outside its own box (x_L, x_U, image_box); give inputs within it.")
        return cls(low, high, centre)

    @classmethod
    def ball(cls, centre: Tensor, radius: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> InputSet:
        """An ℓ₂ ball, cut by a box that holds its centre where one is given.

        Raises:
            ShapeError: a radius per sample, or one for all, is needed.
        """
        if radius.numel() not in (1, len(centre)):
            raise ShapeError(f"eps has shape {tuple(radius.shape)}; give a number, or one per sample ({len(centre)}).")
        radius = radius.reshape(-1).expand(len(centre))
        wide = radius.reshape(-1, *[1] * (centre.ndim - 1))
        start, end = next_below(centre - wide), next_above(centre + wide)
        start = start if low is None else torch.maximum(start, low)
        end = end if high is None else torch.minimum(end, high)
        return replace(cls.box(centre, start, end), radius=radius)

    def __len__(self) -> int:
        return len(self.centre)

    @property
    def shape(self) -> torch.Size:
        """Shape of one input."""
        return self.centre.shape[1:]

    def select(self, index: Tensor) -> InputSet:
        """The sets of the samples at ``index``, repeats allowed."""
        radius = None if self.radius is None else self.radius[index]
        return InputSet(self.low[index], self.high[index], self.centre[index], radius)

    def within(self, low: Tensor, high: Tensor) -> InputSet:
        """The part inside another box (it may be empty: see `empty`)."""
        return replace(self, low=torch.maximum(self.low, low), high=torch.minimum(self.high, high))

    @property
    def size(self) -> Tensor:
        """Largest absolute values of the inputs, and of the numbers that bounds of them are computed from."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        if self.radius is None:
            return size
        return torch.maximum(size, self.centre.abs() + self.radius.reshape(-1, *[1] * (self.centre.ndim - 1)))

    @property
    def empty(self) -> Tensor:
        """Samples whose box is empty, or misses the ball: certainly no point is left, ``(batch,)``."""
        low, high = self.low.flatten(1), self.high.flatten(1)
        gone = (low > high).any(1)
        if self.radius is not None:
            centre = self.centre.flatten(1)
            nearest = torch.minimum(torch.maximum(centre, low), high)
            slack = 1 + 8 * low.shape[1] * torch.finfo(low.dtype).eps
            gone = gone | (safe_norm(nearest - centre) > self.radius * slack)
        return gone

    @property
    def moves(self) -> Tensor:
        """1 for each coordinate in which the set extends, else 0, ``(batch, n)``: two of its points differ in no other.

        A constant over pairs of points is a norm of the Jacobian's columns of these coordinates.
        """
        return (self.high > self.low).flatten(1).to(self.low.dtype)

    def support(self, rows: Tensor) -> Tensor:
        """Upper bound of ``max a · x`` over the set, rounding included, ``(batch, rows, *shape) -> (batch, rows)``."""
        a = rows.flatten(2)
        low, high, centre = (t.flatten(1).unsqueeze(1) for t in (self.low, self.high, self.centre))
        value = torch.maximum(a * low, a * high).sum(-1)
        if self.radius is not None:
            offset = (low - centre).squeeze(1), (high - centre).squeeze(1)
            value = torch.minimum(value, (a * centre).sum(-1) + box_ball_support(a, *offset, self.radius))
        size = torch.maximum(low.abs(), high.abs())
        if self.radius is not None:
            size = size + centre.abs() + self.radius.reshape(-1, 1, 1)
        return value + 4 * (a.shape[-1] + 8) * torch.finfo(a.dtype).eps * (a.abs() * size).sum(-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Random points ``(batch, count, *shape)``; half of a box's are on its edges, half of a ball's on the
        sphere."""
        like = dict(dtype=self.low.dtype, device=self.low.device, generator=generator)
        shape = (len(self), count, *self.shape)
        on_edge = (torch.rand(len(self), count, *[1] * len(self.shape), **like) < 0.5).to(self.low.dtype)
        if self.radius is not None:
            step = torch.randn(shape, **like)
            length = torch.rand(len(self), count, **like).maximum(on_edge.flatten(1))
            scale = length * self.radius.unsqueeze(1) / safe_norm(step.flatten(2)).clamp(min=1e-30)
            return self.project(self.centre.unsqueeze(1) + step * scale.reshape(on_edge.shape))
        share = torch.rand(shape, **like)
        share = on_edge * share.round() + (1 - on_edge) * share
        low, high = self.low.unsqueeze(1), self.high.unsqueeze(1)
        return torch.minimum(torch.maximum(low + share * (high - low), low), high)

    def project(self, x: Tensor) -> Tensor:
        """Points ``(batch, count, *shape)`` moved into the set: towards the centre, then into the box.

        For a box that holds the ball's centre, as that of a user's region does, the result lies in both.
        """
        if self.radius is not None:
            step = x - self.centre.unsqueeze(1)
            length = safe_norm(step.flatten(2))
            slack = 1 - 8 * self.shape.numel() * torch.finfo(x.dtype).eps
            scale = (self.radius.unsqueeze(1) * slack / length.clamp(min=1e-300)).clamp(max=1)
            x = self.centre.unsqueeze(1) + step * scale.reshape(*scale.shape, *[1] * len(self.shape))
        return torch.minimum(torch.maximum(x, self.low.unsqueeze(1)), self.high.unsqueeze(1))
