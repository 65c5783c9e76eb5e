"""Box-constrained propagation: cross-entropy of worst-case logits over ball ∩ box.

Lee, Lee & Park, "Lipschitz-Certifiable Training with a Tight Outer Bound", NeurIPS 2020, arXiv 2010.15480.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.losses.worst_case import RobustLoss


class BCPLoss(RobustLoss):
    """CE(worst-case logits, y), the worst case taken over the features' ball ∩ box where the bound gives one.

    Without a region it is the cross-entropy of logit_j + eps · L_j, as in Lipschitz-margin training. Combine it with
    the clean loss through ``mixed_loss``. Tensors and errors are those of `RobustLoss`.

    Source: Lee, Lee & Park, NeurIPS 2020, arXiv 2010.15480.
    """

    uses_region = True

    def from_worst_case(self, logits: Tensor, worst: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(worst, labels)
