"""PGD as the ceiling: whatever it breaks, no certificate can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def survives_pgd(
    model: nn.Module, x: Tensor, labels: Tensor, eps: float, steps: int = 100, *, seed: int | Sequence[int] = 0
) -> Tensor:
    """Whether foolbox's ℓ₂ PGD (projected to [0, 1]) leaves each sample correctly classified, (batch,) boolean.

    Args:
        model: in eval mode, taking images in [0, 1].
        eps: radius; the adversarial example is checked to lie within it.
        steps: of size eps / 10 each, from one random start.
        seed: of the random starts, or one for each sample, whose start then depends on nothing else.
    """
    import foolbox

    correct = model(x).argmax(dim=1) == labels
    if eps == 0 or not bool(correct.any()):
        return correct
    seeds = [seed + i for i in range(len(x))] if isinstance(seed, int) else list(seed)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack = _started_at(directions(x, seeds))(steps=steps, rel_stepsize=0.1)
    _, clipped, success = attack(wrapped, x, labels, epsilons=eps)
    distance = (clipped - x).flatten(1).norm(dim=1)
    return correct & ~(success & (distance <= eps * (1 + 1e-5)))


def directions(x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Per sample a point drawn uniformly from the unit ball, as a function of its seed; of the shape of ``x``."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        point = torch.randn(x[0].numel(), generator=generator)
        size = torch.rand((), generator=generator) ** (1 / x[0].numel())
        drawn.append(size * point / point.norm())
    return torch.stack(drawn).reshape(x.shape).to(x)


def _started_at(start: Tensor) -> Any:
    import foolbox

    class Attack(foolbox.attacks.L2ProjectedGradientDescentAttack):
        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            return x0 + type(x0)(epsilon * start)

    return Attack
