"""Worst-case logits over a region, from pair-wise Lipschitz constants and, where known, the ball ∩ box of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lirpa_lip.errors import ShapeError
from lirpa_lip.losses.ball_box import worst_case_increase
from lirpa_lip.losses.bound import FeatureRegion


def worst_case_logits(
    logits: Tensor,
    pair_lipschitz: Tensor,
    eps: float | Tensor,
    labels: Tensor,
    region: FeatureRegion | None = None,
    *,
    iterations: int = 20,
) -> Tensor:
    """Upper bounds of logit_j(x') − logit_y(x') + logit_y(x) over ‖x' − x‖₂ ≤ eps.

    Formula: logit_j + eps · L_j, with the maximum over ball ∩ box in place of eps · L_j where that is smaller.

    Args:
        logits, pair_lipschitz: (batch, classes), as in ``BoundOutput``.
        eps: radius, a number or (batch,).
        labels: (batch,) the classes y that ``pair_lipschitz`` was computed for.
        region: set of possible features; None leaves the Lipschitz constants alone.
        iterations: of the search for the multiplier of the ball; the value is an upper bound at any.

    Returns:
        (batch, classes); unchanged at j = y, so that argmax = y with a gap means verified.

    Raises:
        ShapeError: logits, pair_lipschitz and labels do not go together.
    """
    check_shapes(logits, pair_lipschitz, labels)
    logits, pair_lipschitz = full_precision(logits), full_precision(pair_lipschitz)
    increase = _column(eps, logits) * pair_lipschitz
    if region is not None:
        centre, radius, lower, upper, weight = (full_precision(t) for t in region)
        inner = worst_case_increase(weight, labels, radius, lower - centre, upper - centre, iterations=iterations)
        increase = torch.minimum(increase, inner)
    # An infinite Lipschitz constant is a valid (useless) bound of every pair but the one of y with itself.
    return logits + torch.where(_is_label(logits, labels), 0.0, increase)


class RobustLoss(nn.Module):
    """Base of the losses: the fields of a `BoundOutput` in, one number out.

    Every loss is called ``loss(out.logits, out.pair_lipschitz, eps, labels, out.region)``. One of your own derives from
    this class and says in ``from_worst_case(logits, worst, labels)`` what becomes of `worst_case_logits`.
    """

    uses_region = False

    def forward(
        self,
        logits: Tensor,
        pair_lipschitz: Tensor,
        eps: float | Tensor,
        labels: Tensor,
        region: FeatureRegion | None = None,
    ) -> Tensor:
        """The loss, a mean over the batch, of shape ().

        Args:
            logits: (batch, classes) of the unperturbed inputs.
            pair_lipschitz: (batch, classes); L_j bounds how fast logit_y − logit_j moves on the sample's ball.
            eps: radius of the balls in units of the input, a number or (batch,).
            labels: (batch,) integer classes y.
            region: where the last layer's input can lie; used by losses whose ``uses_region`` is True.

        Raises:
            ShapeError: the tensors do not go together.
        """
        used = region if self.uses_region else None
        return self.from_worst_case(logits, worst_case_logits(logits, pair_lipschitz, eps, labels, used), labels)

    def from_worst_case(self, logits: Tensor, worst: Tensor, labels: Tensor) -> Tensor:
        """The loss, of shape (), of the logits and of their worst case, both (batch, classes)."""
        raise NotImplementedError


def mixed_loss(logits: Tensor, robust_loss: Tensor, labels: Tensor, kappa: float) -> Tensor:
    """κ · cross-entropy of the clean logits + (1 − κ) · robust loss, of shape ().

    Args:
        logits: (batch, classes) of the unperturbed inputs.
        robust_loss: what a loss returned for the same batch.
        labels: (batch,) integer classes.
        kappa: κ from 0 to 1; 0 leaves the clean loss out.

    Source: Lee, Lee & Park, NeurIPS 2020, arXiv 2010.15480, eq. 8.
    """
    if kappa == 0.0:
        return robust_loss
    return kappa * F.cross_entropy(logits, labels) + (1.0 - kappa) * robust_loss


def full_precision(x: Tensor) -> Tensor:
    """float32 in place of the 16-bit types of a mixed-precision forward pass; anything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_shapes(logits: Tensor, pair_lipschitz: Tensor, labels: Tensor) -> None:
    """Raises ``ShapeError`` unless logits and pair_lipschitz are (batch, classes) and labels (batch,)."""
    if logits.ndim != 2 or pair_lipschitz.shape != logits.shape or labels.shape != logits.shape[:1]:
        raise ShapeError(
            "a loss takes logits (batch, classes), pair_lipschitz of the same shape and labels (batch,); got "
            f"{tuple(logits.shape)}, {tuple(pair_lipschitz.shape)} and {tuple(labels.shape)}."
        )


def _column(eps: float | Tensor, logits: Tensor) -> Tensor:
    return torch.as_tensor(eps, dtype=logits.dtype, device=logits.device).reshape(-1, 1)


def _is_label(logits: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, logits.shape[1]).bool()
