"""Deep random networks that contract: every layer's norm is above 1, the network's constant far below."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Deep(NamedTuple):
    """A network with 5 inputs and 2 outputs in float64, and a point ``(1, 5)``."""

    network: nn.Sequential
    x: Tensor


def contracting(width: int, layers: int, seed: int) -> Deep:
    """ReLU between dense layers of spectral norm 0.8 to 2.5 with biases from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    sizes = [5, *[width] * (layers - 1), 2]
    found: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:]):
        layer = nn.Linear(before, after, dtype=torch.float64)
        weight = normal(after, before)
        norm = 0.8 + 1.7 * torch.rand(1, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            layer.weight.copy_(norm * weight / torch.linalg.matrix_norm(weight, 2))
            layer.bias.copy_(normal(after))
        found += [layer, nn.ReLU()]
    return Deep(nn.Sequential(*found[:-1]), normal(1, 5))
