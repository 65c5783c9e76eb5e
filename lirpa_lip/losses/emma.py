"""EMMA: enlarges each rival logit only as far as it takes to overtake the label's.

Hu, Zou, Wang, Leino & Fredrikson, "Unlocking Deterministic Robustness Certification on ImageNet", NeurIPS 2023,
arXiv 2301.12549, §4 (efficient margin maximisation).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.losses.bound import FeatureRegion
from lirpa_lip.losses.worst_case import RobustLoss, _column, _is_label, check_shapes, full_precision


class EMMALoss(RobustLoss):
    """CE(logit_j + ε_j · L_j, y) with ε_j = clip((logit_y − logit_j) / L_j, 0, eps) held constant in the gradient.

    Every rival within reach is brought level with the label, so all of them, not the nearest one alone, give a
    gradient, and none is punished beyond its own margin. Tensors and errors are those of `RobustLoss`.

    Source: Hu, Zou, Wang, Leino & Fredrikson, NeurIPS 2023, arXiv 2301.12549, §4.
    """

    def forward(
        self,
        logits: Tensor,
        pair_lipschitz: Tensor,
        eps: float | Tensor,
        labels: Tensor,
        region: FeatureRegion | None = None,
    ) -> Tensor:
        return F.cross_entropy(self.enlarged(logits, pair_lipschitz, eps, labels), labels)

    @staticmethod
    def enlarged(logits: Tensor, pair_lipschitz: Tensor, eps: float | Tensor, labels: Tensor) -> Tensor:
        """The logits with every rival's raised by ε_j · L_j, (batch, classes)."""
        check_shapes(logits, pair_lipschitz, labels)
        logits, pair_lipschitz = full_precision(logits), full_precision(pair_lipschitz)
        with torch.no_grad():
            margin = (logits.gather(1, labels[:, None]) - logits).clamp(min=0)
            reach = torch.minimum(
                margin / pair_lipschitz.clamp(min=torch.finfo(logits.dtype).tiny), _column(eps, logits)
            )
        increase = torch.where(_is_label(logits, labels), 0.0, reach * pair_lipschitz)
        return logits + increase
