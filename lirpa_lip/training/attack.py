"""PGD as the ceiling: whatever it breaks, no certificate can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def survives_pgd(model: nn.Module, x: Tensor, labels: Tensor, eps: float, steps: int = 100, seed: int = 0) -> Tensor:
    """Whether foolbox's ℓ₂ PGD (projected to [0, 1]) leaves each sample correctly classified, (batch,) boolean.

    Args:
        model: in eval mode, taking images in [0, 1].
        eps: radius; the adversarial example is checked to lie within it.
        steps: of size eps / 10 each, from one random start.
        seed: of the random start.
    """
    import foolbox

    correct = model(x).argmax(dim=1) == labels
    if eps == 0 or not bool(correct.any()):
        return correct
    torch.manual_seed(seed)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.L2ProjectedGradientDescentAttack(steps=steps, rel_stepsize=0.1)
    _, clipped, success = attack(wrapped, x, labels, epsilons=eps)
    distance = (clipped - x).flatten(1).norm(dim=1)
    return correct & ~(success & (distance <= eps * (1 + 1e-5)))
