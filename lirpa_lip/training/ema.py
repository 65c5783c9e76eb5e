"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError


class WeightAverage:
    """average ← decay · average + (1 − decay) · weights, after every step.

    The decay starts low, min(decay, (1 + n) / (10 + n)) at step n, so that the start is forgotten early.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"the average's decay must lie between 0 and 1; got {decay}.")
        self.decay, self.steps = decay, 0
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)
        self.steps += 1

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Puts the average into the model for the duration of a ``with`` block."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy(self.weights, model)
        try:
            yield
        finally:
            _copy(own, model)


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
