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


class SparsityLoss(nn.Module):
    """Σ over activations of how far their intervals [l, u] are from being constant, averaged over neurons and batch.

    Each activation adds mean relu(u − below) + s · mean relu(above − l), where it is constant below ``below`` and above
    ``above`` (a term is left out where there is no such threshold). So

    * ReLU adds mean relu(u); clipped ReLU mean relu(u) + s · mean relu(θ − l);
    * clipped MaxMin on a pair (a, b), as two activations: mean relu(min(u_a, u_b) − θ_min) and
      s · mean relu(θ_max − max(l_a, l_b)).

    Args:
        saturation: s ≥ 0, the weight of the upper clip. Published for clipped ReLU; 1 for MaxMin there.

    Raises:
        ConfigError: ``saturation`` is negative.

    Source: Huang, Zhang, Shi, Kolter & Anandkumar, NeurIPS 2021, arXiv 2111.01395, §3.3.
    """

    def __init__(self, saturation: float = 1.0) -> None:
        super().__init__()
        if saturation < 0:
            raise ConfigError(f"the sparsity loss needs saturation >= 0; got {saturation}.")
        self.saturation = saturation

    def forward(self, intervals: Iterable[ActivationInterval]) -> Tensor:
        """The sum, of shape (); zero, without a gradient, where none can be constant.

        Args:
            intervals: ``BoundOutput.intervals``, of tensors ``(batch, *shape)``.
        """
        total = torch.zeros(())
        for lower, upper, below, above in intervals:
            if below is not None:
                total = total.to(upper) + F.relu(upper - below).mean()
            if above is not None:
                total = total.to(lower) + self.saturation * F.relu(above - lower).mean()
        return total
