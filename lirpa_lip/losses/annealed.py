"""Logit annealing: of a margin that is large already, no more is asked.

Lai et al., "Enhancing Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing Loss", ICML 2025,
arXiv 2505.15174.
"""

from __future__ import annotations

from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.losses.bound import FeatureRegion
from lirpa_lip.losses.emma import EMMALoss
from lirpa_lip.losses.worst_case import _is_label


class LogitAnnealingLoss(EMMALoss):
    """Mean of −T (1 − p)^γ log p, p = softmax((a − ξ e_y) / T)_y, a the logits that EMMA enlarges.

    As published: rival logits are first brought up to the label's, as in ``EMMALoss``; the offset ξ asks for a margin,
    the temperature T sharpens it, and the annealing (1 − p)^γ lets the gradient of samples that have it fall to zero,
    since a network of bounded Lipschitz constant cannot give all samples large margins.

    Args:
        temperature: T > 0.
        offset: ξ ≥ 0, in units of the logits.
        annealing: γ ≥ 0; 0 is the cross-entropy.

    Raises:
        ConfigError: one of them is outside its range. Of tensors see `RobustLoss`.

    Source: Lai et al., ICML 2025, arXiv 2505.15174.
    """

    def __init__(self, temperature: float = 0.75, offset: float = 2.0, annealing: float = 5.0) -> None:
        super().__init__()
        if temperature <= 0 or offset < 0 or annealing < 0:
            raise ConfigError(
                "logit annealing needs temperature > 0, offset >= 0 and annealing >= 0; "
                f"got {temperature}, {offset} and {annealing}."
            )
        self.temperature, self.offset, self.annealing = temperature, offset, annealing

    def forward(
        self,
        logits: Tensor,
        pair_lipschitz: Tensor,
        eps: float | Tensor,
        labels: Tensor,
        region: FeatureRegion | None = None,
    ) -> Tensor:
        enlarged = self.enlarged(logits, pair_lipschitz, eps, labels)
        asked = (enlarged - self.offset * _is_label(enlarged, labels)) / self.temperature
        log_p = asked.log_softmax(1).gather(1, labels[:, None])
        # 1 − p as a sum of the rivals' probabilities: its power has a gradient where p rounds to 1.
        rest = asked.softmax(1).masked_fill(_is_label(asked, labels), 0.0).sum(1, keepdim=True)
        return (-self.temperature * rest.pow(self.annealing) * log_p).mean()
