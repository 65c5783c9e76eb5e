"""GloRo: cross-entropy with an additional logit that stands for "not certified".

Leino, Wang & Fredrikson, "Globally-Robust Neural Networks", ICML 2021, arXiv 2102.08452, §3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.losses.worst_case import RobustLoss, _is_label, full_precision


class GloRoLoss(RobustLoss):
    """CE([logits, ⊥], y) with ⊥ = max_{j ≠ y} logit_j + eps · L_j.

    Leino et al. take the pairs of the predicted class, we those of the label, as Huang et al. (2021) do: they differ
    on misclassified samples alone, where ⊥ is then at least the largest logit too. The ball ∩ box of BCP tightens ⊥
    where the bound gives one. Tensors and errors are those of `RobustLoss`.

    Source: Leino, Wang & Fredrikson, ICML 2021, arXiv 2102.08452, §3.

    Example:
        >>> logits, pairs, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.4]]), torch.tensor([0])
        >>> loss = GloRoLoss()
        >>> [round(float(loss(logits, pairs, eps, labels)), 3) for eps in (0.0, 0.5, 1.0)]
        [0.24, 0.342, 0.521]
    """

    uses_region = True

    def from_worst_case(self, logits: Tensor, worst: Tensor, labels: Tensor) -> Tensor:
        bottom = worst.masked_fill(_is_label(worst, labels), -torch.inf).amax(dim=1, keepdim=True)
        return F.cross_entropy(torch.cat([full_precision(logits), bottom], dim=1), labels)
