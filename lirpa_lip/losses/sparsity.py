"""Sparsity loss: pulls activations' intervals into the regions where the activation is constant.

Huang, Zhang, Shi, Kolter & Anandkumar, "Training Certifiably Robust Neural Networks with Efficient Local Lipschitz
Bounds", NeurIPS 2021, arXiv 2111.01395, §3.3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lirpa_lip.errors import ConfigError
from lirpa_lip.losses.bound import ActivationInterval
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU
from lirpa_lip.nn.functional import broadcast_threshold


class SparsityLoss(nn.Module):
    """Σ over layers of how far the intervals are from being constant, averaged over neurons and batch.

    * ReLU: mean relu(u), zero once every neuron is dead.
    * clipped ReLU: mean relu(u) + s · mean relu(θ − l). A neuron is constant as soon as one of the two is zero.
    * clipped MaxMin on a pair (a, b): mean relu(θ_max − max(l_a, l_b)) + mean relu(min(u_a, u_b) − θ_min).
    * any other layer: nothing, as it has no constant part.

    Args:
        saturation: s ≥ 0, the weight of the upper clip.
    """

    def __init__(self, saturation: float = 1.0) -> None:
        super().__init__()
        if saturation < 0:
            raise ConfigError(f"the sparsity loss needs saturation >= 0; got {saturation}.")
        self.saturation = saturation

    def forward(self, intervals: Iterable[ActivationInterval]) -> Tensor:
        """Sum over the layers; a zero without a gradient where there are none."""
        terms = [self.layer_term(*interval) for interval in intervals]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def layer_term(self, layer: nn.Module, lower: Tensor, upper: Tensor) -> Tensor:
        if isinstance(layer, ClippedReLU):
            theta = broadcast_threshold(layer.threshold, lower)
            return F.relu(upper).mean() + self.saturation * F.relu(theta - lower).mean()
        if isinstance(layer, ClippedMaxMin):
            largest_lower = torch.maximum(*lower.chunk(2, dim=1))
            smallest_upper = torch.minimum(*upper.chunk(2, dim=1))
            above = broadcast_threshold(layer.max_threshold, lower) - largest_lower
            below = smallest_upper - broadcast_threshold(layer.min_threshold, lower)
            return F.relu(above).mean() + F.relu(below).mean()
        if isinstance(layer, nn.ReLU):
            return F.relu(upper).mean()
        return upper.new_zeros(())
