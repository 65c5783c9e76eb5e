"""Certified-radius maximisation: cross-entropy plus a hinge on a soft certified radius.

In the spirit of Fazlyab, Entesari, Roy & Chellappa, "Certified Robustness via Dynamic Margin Maximization and Improved
Lipschitz Regularization", NeurIPS 2023, arXiv 2310.00116; ours uses any of the bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.errors import ConfigError
from lirpa_lip.losses.bound import FeatureRegion
from lirpa_lip.losses.worst_case import RobustLoss, _is_label, check_shapes, full_precision


class CRMLoss(RobustLoss):
    """CE(logits, y) + weight · mean over correct samples of max(0, eps − R) / eps.

    R = −(1/τ) log Σ_{j ≠ y} exp(−τ (logit_y − logit_j) / L_j) is a smooth lower bound of the certified radius
    min_j (logit_y − logit_j) / L_j, at most log(classes − 1) / τ below it.

    Args:
        weight: of the radius term, ≥ 0.
        sharpness: τ · eps > 0, so that the smoothing is relative to the radius asked for.

    Raises:
        ConfigError: ``weight`` is negative, or ``sharpness`` not positive. Of tensors see `RobustLoss`.

    Source: after Fazlyab, Entesari, Roy & Chellappa, NeurIPS 2023, arXiv 2310.00116.
    """

    def __init__(self, weight: float = 5.0, sharpness: float = 10.0) -> None:
        super().__init__()
        if weight < 0 or sharpness <= 0:
            raise ConfigError(f"CRM needs weight >= 0 and sharpness > 0; got {weight} and {sharpness}.")
        self.weight, self.sharpness = weight, sharpness

    def forward(
        self,
        logits: Tensor,
        pair_lipschitz: Tensor,
        eps: float | Tensor,
        labels: Tensor,
        region: FeatureRegion | None = None,
    ) -> Tensor:
        check_shapes(logits, pair_lipschitz, labels)
        logits, pair_lipschitz = full_precision(logits), full_precision(pair_lipschitz)
        loss = F.cross_entropy(logits, labels)
        radius_asked = torch.as_tensor(eps, dtype=logits.dtype, device=logits.device).expand(len(labels))
        is_label = _is_label(logits, labels)
        margin = logits.gather(1, labels[:, None]) - logits
        use = (radius_asked > 0) & (margin.masked_fill(is_label, torch.inf).amin(1) > 0)
        if not bool(use.any()):
            return loss
        margin, lipschitz, eps_used = (
            margin[use],
            pair_lipschitz[use].masked_fill(is_label[use], 1.0),
            radius_asked[use],
        )
        relative = (margin / lipschitz.clamp(min=torch.finfo(logits.dtype).tiny)) / eps_used[:, None]
        soft = -torch.logsumexp((-self.sharpness * relative).masked_fill(is_label[use], -torch.inf), 1) / self.sharpness
        return loss + self.weight * (1.0 - soft).clamp(min=0).sum() / len(labels)
