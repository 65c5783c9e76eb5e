"""The closed set of inputs a bound speaks of: an ℓ₂ ball, a box, or a ball cut by a box."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError
from lirpa_lip.precision import next_above, next_below, rounded_up
from lirpa_lip.regions.ball_box import box_ball_support
from lirpa_lip.regions.sizes import safe_norm

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Region:
    """``{x : ‖x − centre‖₂ ≤ radius, low ≤ x ≤ high}``, closed; a ball, a box, or a ball cut by a box.

    Attributes:
        centre: ``(batch, *shape)``. Of a user's region it lies between ``low`` and ``high``; branch and bound shrinks
            the box, and then it may lie outside.
        radius: ``(batch,)``, >= 0, in the units of the input; ``None`` for a box alone.
        low, high: ``(batch, *shape)``, or ``None`` for a ball alone.
    """

    centre: Tensor
    radius: Tensor | None
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def make(
        cls,
        x: Tensor,
        eps: float | Tensor,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Region:
        """A ball, cut by a box where one is given: checks and broadcasts.

        Args:
            x: the centre, ``(batch, *shape)``.
            eps: the radius, a number or one for each sample.
            low, high: numbers or tensors that broadcast to ``x``.
            dtype: of the region, that of ``x`` by default. Numbers come into it as they were given, not through the
                precision of ``x``, and what it cannot hold is rounded outward.

        Raises:
            NonFiniteError: NaN or infinity in ``x`` or ``eps``.
            ConfigError: ``eps < 0``, or a centre outside the image box.
            ShapeError: ``eps`` is neither a number nor one number per sample.
        """
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError("the input", "check how it is loaded and normalised")
        dtype = dtype or x.dtype
        radius = rounded_up(eps, dtype, x.device)
        if radius.numel() == 1:
            radius = radius.reshape(1).expand(x.shape[0])
        if radius.numel() != x.shape[0]:
            raise ShapeError(f"eps has shape {tuple(radius.shape)}; give a number, or one per sample ({x.shape[0]}).")
        radius = radius.reshape(-1)
        if not bool(torch.isfinite(radius).all()):
            raise NonFiniteError("eps", "give finite radii")
        if bool((radius < 0).any()):
            raise ConfigError(f"eps={radius.min().item()} is negative; a radius must be >= 0.")
        if low is None and high is None:
            return cls(x.to(dtype), radius)
        ends = box_ends(x, low, high, dtype)
        x = x.to(dtype)
        _check_inside(x, *ends)
        return cls(x, radius, *ends)

    @classmethod
    def box(cls, centre: Tensor, low: float | Tensor, high: float | Tensor) -> Region:
        """A box around ``centre``; ``low`` and ``high`` are numbers or tensors that broadcast to it.

        Raises:
            NonFiniteError: an end is NaN or infinite.
            ConfigError: ``low > high`` somewhere, or the centre lies outside.
        """
        start, end = (
            torch.as_tensor(t, dtype=centre.dtype, device=centre.device).expand_as(centre) for t in (low, high)
        )
        if not bool(torch.isfinite(start).all() & torch.isfinite(end).all() & torch.isfinite(centre).all()):
            raise NonFiniteError("the input box", "give finite ends (x_L, x_U, or a finite eps)")
        if bool((start > end).any()):
            raise ConfigError("the input box is empty: x_L > x_U somewhere.")
        _check_inside(centre, start, end)
        return cls(centre, None, start, end)

    def __len__(self) -> int:
        return len(self.centre)

    @property
    def shape(self) -> torch.Size:
        """Shape of one input."""
        return self.centre.shape[1:]

    @property
    def eps(self) -> Tensor:
        """The radius of a region that is a ball, or part of one."""
        if self.radius is None:
            raise ConfigError("this region is a box alone; give one with an l2 ball (norm=2).")
        return self.radius

    def select(self, index: Tensor) -> Region:
        """The samples at ``index``, which may repeat."""
        parts = (None if part is None else part[index] for part in (self.radius, self.low, self.high))
        return Region(self.centre[index], *parts)

    def detach(self) -> Region:
        """The same region without gradients."""
        parts = (None if part is None else part.detach() for part in (self.radius, self.low, self.high))
        return Region(self.centre.detach(), *parts)

    def within(self, low: Tensor, high: Tensor) -> Region:
        """The part inside another box (it may be empty: see `empty`)."""
        least, most = self.interval()
        return replace(self, low=torch.maximum(least, low), high=torch.minimum(most, high))

    def interval(self) -> Interval:
        """The box that encloses the region, rounded outward."""
        if self.radius is None:
            assert self.low is not None and self.high is not None
            return self.low, self.high
        eps = self._per_coordinate(self.radius)
        low, high = (
            torch.where(eps == 0, self.centre, end)
            for end in (next_below(self.centre - eps), next_above(self.centre + eps))
        )
        if self.low is not None:
            low, high = torch.maximum(low, self.low), torch.minimum(high, self.high)
        return low, high

    def _per_coordinate(self, radius: Tensor) -> Tensor:
        return radius.reshape(-1, *[1] * (self.centre.ndim - 1))

    @property
    def size(self) -> Tensor:
        """Largest absolute values of the inputs, and of the numbers that bounds of them are computed from."""
        low, high = self.interval()
        size = torch.maximum(low.abs(), high.abs())
        if self.radius is None:
            return size
        return torch.maximum(size, self.centre.abs() + self._per_coordinate(self.radius))

    @property
    def empty(self) -> Tensor:
        """Samples whose box is empty, or misses the ball: certainly no point is left, ``(batch,)``."""
        low, high = (t.flatten(1) for t in self.interval())
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

        A constant over pairs of points is a norm of the Jacobian's columns of these coordinates. Of a ball of radius 0
        all count: its constant is taken for the limit of small radii.
        """
        low, high = self.interval()
        moves = high > low
        if self.radius is not None:
            moves = moves | (self._per_coordinate(self.radius) == 0)
        return moves.flatten(1).to(low.dtype)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Random points ``(batch, count, *shape)``; half of a ball's are on the sphere, half of a box's on its
        edges."""
        like = dict(dtype=self.centre.dtype, device=self.centre.device, generator=generator)
        shape = (len(self), count, *self.shape)
        on_edge = (torch.rand(len(self), count, *[1] * len(self.shape), **like) < 0.5).to(self.centre.dtype)
        if self.radius is not None:
            step = torch.randn(shape, **like)
            length = torch.rand(len(self), count, **like).maximum(on_edge.flatten(1))
            scale = length * self.radius.unsqueeze(1) / safe_norm(step.flatten(2)).clamp(min=1e-30)
            return self.project(self.centre.unsqueeze(1) + step * scale.reshape(on_edge.shape))
        share = torch.rand(shape, **like)
        share = on_edge * share.round() + (1 - on_edge) * share
        low, high = (end.unsqueeze(1) for end in self.interval())
        return torch.minimum(torch.maximum(low + share * (high - low), low), high)

    def project(self, x: Tensor) -> Tensor:
        """Points ``(batch, count, *shape)`` moved into the set: towards the centre, then into the box.

        For a box that holds the ball's centre, as that of a user's region does, the result lies in both.
        """
        if self.radius is not None:
            step = x - self.centre.unsqueeze(1)
            length = safe_norm(step.flatten(2))
            slack = 1 - 8 * self.shape.numel() * torch.finfo(x.dtype).eps
            scale = (self.radius.unsqueeze(1) * slack / length.clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
            x = self.centre.unsqueeze(1) + step * scale.reshape(*scale.shape, *[1] * len(self.shape))
        low, high = (end.unsqueeze(1) for end in self.interval())
        return torch.minimum(torch.maximum(x, low), high)

    def support(self, direction: Tensor, ball_only: bool = False) -> Tensor:
        """Upper bound of ``max direction · (x − centre)``, ``(batch, specs, *shape) -> (batch, specs)``.

        Exact for the ball (or if only it is asked for), and for its intersection with the box up to the search for
        the multiplier. Rounding of the sum is the caller's to add.
        """
        flat = direction.flatten(2)
        if self.low is None or ball_only:
            return safe_norm(flat) * self.eps.unsqueeze(1)
        return box_ball_support(flat, *self.offsets(), self.eps)

    def offsets(self) -> Interval:
        """Ends of the enclosing box from the centre, rounded outward, ``(batch, n)``."""
        low, high = (end - self.centre for end in self.interval())
        # a difference that is 0 is exact
        low, high = torch.where(low == 0, low, next_below(low)), torch.where(high == 0, high, next_above(high))
        return low.flatten(1), high.flatten(1)

    def maximum(self, rows: Tensor) -> Tensor:
        """Upper bound of ``max a · x``, rounding included, ``(batch, rows, *shape) -> (batch, rows)``."""
        a = rows.flatten(2)
        low, high = (t.flatten(1).unsqueeze(1) for t in self.interval())
        centre = self.centre.flatten(1).unsqueeze(1)
        value = torch.maximum(a * low, a * high).sum(-1)
        if self.radius is not None:
            offset = (low - centre).squeeze(1), (high - centre).squeeze(1)
            value = torch.minimum(value, (a * centre).sum(-1) + box_ball_support(a, *offset, self.radius))
        size = torch.maximum(low.abs(), high.abs())
        if self.radius is not None:
            size = size + centre.abs() + self.radius.reshape(-1, 1, 1)
        return value + 4 * (a.shape[-1] + 8) * torch.finfo(a.dtype).eps * (a.abs() * size).sum(-1)


def _check_inside(x: Tensor, low: Tensor, high: Tensor) -> None:
    if bool(((x < low) | (x > high)).any()):
        raise ConfigError(
            "an input lies outside the box of possible inputs (image_box, or x_L and x_U); leave the box out, or "
            "give inputs in that range (normalisation belongs into the model)."
        )


def box_ends(
    x: Tensor, low: float | Tensor | None, high: float | Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Ends of a box, infinite where they are ``None``, in ``dtype``, rounded outward and expanded to ``x``.

    An input that lies at an end as *its* precision has it (0.3 in float32 exceeds 0.3) is inside.
    """
    found = []
    for end, sign in ((low, -1.0), (high, 1.0)):
        given = sign * torch.inf if end is None else end
        exact = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=torch.float64)
        exact = exact.to(x.device)
        outward = sign * rounded_up(sign * exact, dtype)
        as_input = exact.to(x.dtype).to(dtype)
        found.append(sign * torch.maximum(sign * outward, sign * as_input).expand_as(x))
    return found[0], found[1]
