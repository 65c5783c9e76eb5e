"""Sums over the samples of all processes, for the log."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class Totals:
    """Sums over samples, kept on the device so that a step need not wait for them."""

    def __init__(self) -> None:
        self.count, self.sums = 0, dict[str, Tensor]()

    def add(self, count: int, **sums: Tensor) -> None:
        self.count += count
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the samples of all processes."""
        names = sorted(self.sums)
        stacked = torch.stack(
            [torch.tensor(float(self.count), device=accelerator.device)] + [self.sums[name].float() for name in names]
        )
        stacked = accelerator.reduce(stacked, reduction="sum")
        return {name: float(value / stacked[0]) for name, value in zip(names, stacked[1:], strict=True)}
