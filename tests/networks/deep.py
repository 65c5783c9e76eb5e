"""Deep random networks that contract: every layer's norm is above or near 1, the network's constant far below."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

INPUTS, OUTPUTS = 5, 2


class Deep(NamedTuple):
    """A network with 5 inputs and 2 outputs in float64, and a point ``(1, 5)``."""

    network: nn.Sequential
    x: Tensor


def random_network(width: int, layers: int, seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Layers of spectral norm 0.8 to 2.5, biases from N(0, 1), drawn as by Xu and Sivaranjani (TMLR 2026)."""
    numbers = np.random.RandomState(seed)
    sizes = [INPUTS, *[width] * (layers - 1), OUTPUTS]
    found: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        norm, weight = numbers.uniform(0.8, 2.5), numbers.randn(after, before)
        weight, bias = norm * weight / np.linalg.norm(weight, 2), numbers.randn(after)
        layer = nn.Linear(before, after, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        found += [layer, activation()]
    return nn.Sequential(*found[:-1])


def contracting(width: int, layers: int, seed: int) -> Deep:
    """A ReLU network, and a point from N(0, 1)."""
    x = torch.randn(1, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Deep(random_network(width, layers, seed), x)
