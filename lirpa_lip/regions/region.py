"""The set of inputs a bound speaks of: an ℓ₂ ball, optionally cut by the box of possible images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError
from lirpa_lip.precision import next_above, next_below, rounded_up

#: Steps towards the best multiplier in `box_ball_support`; any number of them gives a valid bound.
_STEPS = 8


@dataclass(frozen=True)
class Region:
    """``{x : ‖x − centre‖₂ ≤ eps}``, cut by ``low ≤ x ≤ high`` where these are given.

    Attributes:
        centre: ``(batch, *shape)``.
        eps: ``(batch,)``, radii >= 0 in the units of the input.
        low, high: scalars, ``(batch, *shape)`` tensors, or ``None``. The centre must lie between them.
    """

    centre: Tensor
    eps: Tensor
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
        """Checks and broadcasts; ``low`` and ``high`` are numbers or tensors that broadcast to ``x``.

        Args:
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
        eps = rounded_up(eps, dtype, x.device)
        if eps.numel() == 1:
            eps = eps.reshape(1).expand(x.shape[0])
        if eps.numel() != x.shape[0]:
            raise ShapeError(f"eps has shape {tuple(eps.shape)}; give a number, or one per sample ({x.shape[0]}).")
        eps = eps.reshape(-1)
        if not bool(torch.isfinite(eps).all()):
            raise NonFiniteError("eps", "give finite radii")
        if bool((eps < 0).any()):
            raise ConfigError(f"eps={eps.min().item()} is negative; a radius must be >= 0.")
        if low is None and high is None:
            return cls(x.to(dtype), eps)
        low, high = box_ends(x, low, high, dtype)
        x = x.to(dtype)
        if bool(((x < low) | (x > high)).any()):
            raise ConfigError(
                "an input lies outside the box of possible inputs (image_box, or x_L and x_U); leave the box out, or "
                "give inputs in that range (normalisation belongs into the model)."
            )
        return cls(x, eps, low, high)

    def select(self, index: Tensor) -> Region:
        """The samples at ``index``, which may repeat."""
        ends = (None if end is None else end[index] for end in (self.low, self.high))
        return Region(self.centre[index], self.eps[index], *ends)

    def interval(self) -> tuple[Tensor, Tensor]:
        """The box that encloses the region, rounded outward."""
        eps = self.eps.reshape(-1, *[1] * (self.centre.ndim - 1))
        low, high = (
            torch.where(eps == 0, self.centre, end)
            for end in (next_below(self.centre - eps), next_above(self.centre + eps))
        )
        if self.low is not None:
            low, high = torch.maximum(low, self.low), torch.minimum(high, self.high)
        return low, high

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A random point of the region for each sample, half of the draws on the sphere, ``(batch, *shape)``."""
        like = dict(dtype=self.centre.dtype, device=self.centre.device, generator=generator)
        direction = torch.randn(self.centre.shape, **like).flatten(1)
        share = torch.rand(len(self.eps), 1, **like)
        share = torch.where(share < 0.5, 2 * share, torch.ones_like(share))
        step = direction / safe_norm(direction).unsqueeze(1).clamp(min=1e-30) * share * self.eps.unsqueeze(1)
        x = self.centre + step.reshape(self.centre.shape)
        return x if self.low is None else torch.minimum(torch.maximum(x, self.low), self.high)

    def support(self, direction: Tensor, ball_only: bool = False) -> Tensor:
        """Upper bound of ``max direction · (x − centre)``, ``(batch, specs, *shape) -> (batch, specs)``.

        Exact for the ball (or if only it is asked for), and for its intersection with the box up to the search for
        the multiplier.
        """
        flat = direction.flatten(2)
        if self.low is None or ball_only:
            return safe_norm(flat) * self.eps.unsqueeze(1)
        return box_ball_support(flat, *self.offsets(), self.eps)

    def offsets(self) -> tuple[Tensor, Tensor]:
        """Ends of the enclosing box from the centre, rounded outward, ``(batch, n)``."""
        low, high = (end - self.centre for end in self.interval())
        # a difference that is 0 is exact
        low, high = torch.where(low == 0, low, next_below(low)), torch.where(high == 0, high, next_above(high))
        return low.flatten(1), high.flatten(1)


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


def safe_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean norm along one axis, with gradient zero (not NaN) where it is zero.

    Where squares would underflow or overflow it is taken of numbers scaled by a power of two.
    """
    squares = x.square().sum(dim)
    positive = squares > 0
    norm = torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
    info = torch.finfo(x.dtype)
    doubtful = (squares < 1024 * info.tiny / info.eps) | (squares > info.max / 4)
    if not bool(doubtful.any()):
        return norm
    part = x.movedim(dim, -1)[doubtful]
    if part.shape[-1] == 0:
        return norm
    size = part.detach().abs().amax(-1, keepdim=True)
    usable = (size > 0) & torch.isfinite(size)
    if not bool(usable.any()):
        return norm
    # two steps, since neither a scale nor its inverse need be a number
    half = torch.frexp(size).exponent.div(2, rounding_mode="floor")
    one = torch.ones_like(size)
    first, second = (torch.ldexp(one, e) for e in (half, torch.frexp(size).exponent - half))
    part = torch.where(usable, part / first / second, 0.0)
    squares = part.square().sum(-1, keepdim=True)
    scaled = torch.where(usable, torch.where(usable, squares, 1.0).sqrt(), 0.0) * first * second
    # the square root of a norm that underflows is not zero
    scaled = torch.where(usable, scaled.clamp(min=info.tiny * info.eps), norm[doubtful].unsqueeze(-1))
    return norm.index_put(tuple(doubtful.nonzero(as_tuple=True)), scaled.squeeze(-1))


def box_ball_support(direction: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """Upper bound of ``max aᵀe`` subject to ``low <= e <= high`` and ``‖e‖₂ <= radius``.

    By weak duality, for every multiplier λ >= 0

        max aᵀe  <=  λ radius² + Σ_i max_{low_i <= e_i <= high_i} (a_i e_i − λ e_i²),

    where the inner maximum is at ``clip(a_i / 2λ, low_i, high_i)``. The right side is smallest where that point has the
    ball's radius; how well λ is found only decides how tight the bound is. The pure box (λ = 0) and the pure ball (no
    box) are tried as well, so the result never exceeds either.

    Args:
        direction: ``a``, ``(batch, specs, n)``.
        low, high: ``(batch, n)`` with ``low <= 0 <= high``.
        radius: ``(batch,)``, or ``(batch, specs)``.

    Returns:
        ``(batch, specs)``; differentiable in all arguments (the multiplier is held fixed).
    """
    radius = radius.reshape(radius.shape[0], -1)
    low, high = low.unsqueeze(1), high.unsqueeze(1)
    ball = safe_norm(direction) * radius
    box = torch.maximum(direction * low, direction * high).sum(-1)
    with torch.no_grad():
        scale = _scale(direction, low, high, radius)
        e = _clipped(direction * scale.unsqueeze(-1), low, high)
        multiplier = 1 / (2 * scale)
    dual = (direction * e - multiplier.unsqueeze(-1) * e.square()).sum(-1) + multiplier * safe_square(radius)
    return torch.minimum(torch.minimum(ball, box), torch.where(torch.isfinite(dual), dual, ball))


@torch.no_grad()
def support_point(region: Region, direction: Tensor) -> Tensor:
    """Where ``direction · (x − centre)`` is about largest on the region of one sample, ``(rows, *shape)``.

    A point to evaluate the network at, in the region up to rounding; no bound rests on it.
    """
    flat, eps = direction.flatten(1).unsqueeze(0), region.eps.reshape(1, 1)
    if region.low is None:
        size = safe_norm(flat).unsqueeze(-1)
        step = flat / size.clamp(min=torch.finfo(flat.dtype).tiny) * eps.unsqueeze(-1)
    else:
        low, high = (end.unsqueeze(1) for end in region.offsets())
        step = _clipped(flat * _scale(flat, low, high, eps).unsqueeze(-1), low, high)
    x = region.centre + step.reshape(direction.shape)
    return x if region.low is None else torch.minimum(torch.maximum(x, region.low), region.high)


class SupportSearch:
    """`Region.support` of directions that change little from call to call: each goes on from the last multiplier.

    For the region of one sample; as valid, and cheaper, but not the smaller of three bounds.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self._ends = None if region.low is None else region.offsets()
        self._last: Tensor | None = None

    def __call__(self, direction: Tensor) -> Tensor:
        """Upper bounds of ``max direction · (x − centre)``, ``(rows, *shape) -> (rows,)``."""
        a, radius = direction.flatten(1), self.region.eps
        if self._ends is None:
            return safe_norm(a) * radius
        low, high = self._ends
        with torch.no_grad():
            if self._last is None:
                ends = low.unsqueeze(0), high.unsqueeze(0)
                self._last = _scale(a.unsqueeze(0), *ends, radius.reshape(1, 1)).squeeze(0)
            else:
                self._last = self._next(a, low, high, radius)
            multiplier = 0.5 / self._last
            e = _clipped(a * self._last.unsqueeze(1), low, high)
        return (a * e - multiplier.unsqueeze(1) * e.square()).sum(1) + multiplier * safe_square(radius)

    def _next(self, a: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
        assert self._last is not None
        free_e = a * self._last.unsqueeze(1)
        e = _clipped(free_e, low, high)
        squares = e.square()
        moving = torch.where(e == free_e, squares, 0.0).sum(1)
        room = radius.square() - (squares.sum(1) - moving)
        ratio = (room.clamp(min=0) / torch.where(moving > 0, moving, 1.0)).sqrt()
        # where nothing moves any more the box decides, and the ball's multiplier falls to nothing
        ratio = torch.where(moving > 0, ratio.clamp(0.5, 4.0), torch.where(room > 0, 4.0, 0.5))
        return (self._last * ratio).clamp(1e-100, 1e100)


def safe_square(x: Tensor) -> Tensor:
    """Squares of which none is zero but that of zero."""
    return torch.where(x == 0, torch.zeros_like(x), x.square().clamp(min=torch.finfo(x.dtype).tiny))


def _scale(direction: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Tensor:
    """``μ = 1/2λ`` with ``‖clip(μ a)‖ ≈ radius``: what is clipped is held, the rest rescaled; rises to the solution.

    Each step solves ``μ² Σ_free a_i² + Σ_clipped e_i² = radius²`` for the current clipped set.
    """
    tiny = torch.finfo(direction.dtype).tiny
    scale = radius / safe_norm(direction).clamp(min=tiny**0.5)
    for _ in range(_STEPS):
        free_e = direction * scale.unsqueeze(-1)
        e = _clipped(free_e, low, high)
        free = e == free_e
        held = torch.where(free, 0.0, e.square()).sum(-1)
        moving = torch.where(free, direction.square(), 0.0).sum(-1)
        solved = ((radius.square() - held).clamp(min=0) / moving.clamp(min=tiny)).sqrt()
        scale = torch.where(moving > 0, torch.maximum(solved, scale), scale)
    return scale.clamp(min=tiny**0.5, max=1 / tiny**0.5)


def _clipped(e: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(e, low), high)
