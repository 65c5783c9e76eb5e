"""CLL: cross-entropy of margins in units of the radius, so that no scale of the logits or of the bound can cheat it.

Losch, Stutz, Schiele & Fritz, "Certified Robust Models with Slack Control and Large Lipschitz Constants", GCPR 2023,
arXiv 2309.06166 (calibrated Lipschitz-margin loss).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.errors import ConfigError
from lirpa_lip.losses.bound import FeatureRegion
from lirpa_lip.losses.worst_case import RobustLoss, _column, _is_label, check_shapes, full_precision


class CalibratedMarginLoss(RobustLoss):
    """CE(z, y) with z_j = (logit_j − logit_y) / (σ L_j) for j ≠ y, z_y = −eps / σ, σ = eps / log((2 − p) / p).

    R_j = (logit_y − logit_j) / L_j is the radius at which class j can overtake, and z_y − z_j = (R_j − eps) / σ: its
    logistic function is p / 2 at R_j = 0, 1/2 at eps and 1 − p / 2 at 2 eps, whatever the scale of logits and bound.
    L_j has a gradient here (the published code holds it constant for some networks and adds a penalty of the norm).
    Samples with eps = 0 get the cross-entropy of the logits; a ramp of eps moves σ too, so train without one.

    Args:
        slack: p in (0, 1), 0.3 in the published 6C2F. The smaller, the sharper the loss falls around eps.

    Raises:
        ConfigError: ``slack`` lies outside (0, 1). Of tensors see `RobustLoss`.

    Source: Losch, Stutz, Schiele & Fritz, GCPR 2023, arXiv 2309.06166.
    """

    def __init__(self, slack: float = 0.3) -> None:
        super().__init__()
        if not 0.0 < slack < 1.0:
            raise ConfigError(f"the calibrated margin loss needs 0 < slack < 1; got {slack}.")
        self.slack = slack

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
        radius, is_label = _column(eps, logits).expand(len(labels), 1), _is_label(logits, labels)
        used = torch.where(radius > 0, radius, 1.0)
        ahead = logits - logits.gather(1, labels[:, None])
        rates = pair_lipschitz.masked_fill(is_label, 1.0).clamp(min=torch.finfo(logits.dtype).tiny)
        calibrated = (ahead / rates - used * is_label) * (math.log((2.0 - self.slack) / self.slack) / used)
        return F.cross_entropy(torch.where(radius > 0, calibrated, logits), labels)
