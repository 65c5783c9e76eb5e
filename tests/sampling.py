"""Points of a ball to falsify bounds with: random ones, and ones that attack a row of the output."""

from __future__ import annotations

import torch


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
    with torch.no_grad():
        worst = {"below": -torch.inf, "above": -torch.inf}
        candidates = list(ball_points(x, eps, count, low=low, high=high))
        for s in range(c.shape[1]):
            candidates += [attack(f, x, eps, sign * c[:, s], low=low, high=high) for sign in (1, -1)]
        for point in candidates:
            value = torch.einsum("bso,bo->bs", c, f(point).flatten(1))
            worst["below"] = max(worst["below"], float((lower - value).max()))
            worst["above"] = max(worst["above"], float((value - upper).max()))
    assert worst["below"] <= tol and worst["above"] <= tol, worst
