"""Points of a ball to falsify bounds with: random ones, and ones that attack a row of the output."""

from __future__ import annotations

import torch

#: Samples that are evaluated in one call.
_TOGETHER = 512


def ball_points(x: torch.Tensor, eps, count: int, seed: int = 0, low=None, high=None) -> torch.Tensor:
    """``(count, *x.shape)``: random points of the ball around each sample, half of them on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(count, *x.shape, generator=generator, dtype=x.dtype)
    step = step / step.flatten(2).norm(dim=2).clamp(min=1e-30).reshape(count, -1, *[1] * (x.ndim - 1))
    share = torch.rand(count, len(x), generator=generator, dtype=x.dtype)
    share = torch.where(share < 0.5, 2 * share, torch.ones_like(share)) * torch.as_tensor(eps, dtype=x.dtype)
    points = x + step * share.reshape(count, -1, *[1] * (x.ndim - 1))
    return points if low is None else points.clamp(low, high)


def attack(f, x: torch.Tensor, eps, c: torch.Tensor, steps: int = 12, low=None, high=None) -> torch.Tensor:
    """Points that make ``c · f`` small, one per sample, by projected gradient descent; ``c (batch, outputs)``."""
    eps = torch.as_tensor(eps, dtype=x.dtype).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
    point = x.clone()
    for _ in range(steps):
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((f(point).flatten(1) * c).sum(), point)
        size = gradient.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(eps.shape)
        step = point.detach() - 0.3 * eps * gradient / size - x
        size = step.flatten(1).norm(dim=1).reshape(eps.shape)
        point = x + step * torch.where(size > eps, eps / size.clamp(min=1e-30), 1.0)
        point = point if low is None else point.clamp(low, high)
    return point.detach()


def assert_sound(f, x, eps, c, lower, upper, count: int = 200, tol: float = 1e-5, low=None, high=None) -> None:
    """No sampled or attacked value of ``C f`` lies outside ``[lower, upper]``."""
    assert not bool(torch.isnan(lower).any() | torch.isnan(upper).any()), "NaN bounds nothing"
    with torch.no_grad():
        worst = {"below": -torch.inf, "above": -torch.inf}
        rows = torch.cat([c, -c], dim=1).transpose(0, 1)
        reach = torch.as_tensor(eps, dtype=x.dtype).expand(len(x))
        if _takes_any_batch(f, x):
            size = max(1, _TOGETHER // len(x))
            attacked = [
                attack(f, _beside(x, len(part)), reach.repeat(len(part)), part.flatten(0, 1), low=low, high=high)
                for part in rows.split(size)
            ]
        else:
            size, attacked = 1, [attack(f, x, eps, row, low=low, high=high) for row in rows]
        sampled = ball_points(x, eps, count, low=low, high=high)
        for points in [*attacked, *(part.flatten(0, 1) for part in sampled.split(size))]:
            values = f(points).flatten(1)
            values = torch.einsum("bso,nbo->nbs", c, values.reshape(-1, len(x), values.shape[1]))
            worst["below"] = max(worst["below"], float((lower - values).max()))
            worst["above"] = max(worst["above"], float((values - upper).max()))
    assert worst["below"] <= tol and worst["above"] <= tol, worst


def _beside(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.repeat(count, *[1] * (x.ndim - 1))


def _takes_any_batch(f, x: torch.Tensor) -> bool:
    """Whether a batch beside itself gives the same values: some networks have the size of theirs written into them."""
    try:
        expected, found = f(x), f(_beside(x, 2))
    except RuntimeError:
        return False
    same = found.shape[0] == 2 * len(expected)
    return same and torch.allclose(found, torch.cat([expected, expected]), rtol=1e-5, atol=1e-7, equal_nan=True)
