"""The training objective as one module: model, bound, loss and sparsity loss, from a batch to a number.

One module, so that whatever wraps modules (distributed data parallel, mixed precision) sees every parameter and every
kept start vector in one forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lirpa_lip.losses import BoundOutput, SparsityLoss, make_bound, make_loss, mixed_loss
from lirpa_lip.losses.worst_case import worst_case_logits
from lirpa_lip.methods import RENAMED


class Objective(nn.Module):
    """κ · CE + (1 − κ) · (robust loss + sparsity · sparsity loss), or CE alone.

    Args:
        model: the network; it is a submodule under the name ``model``.
        sample: an input, for its shape and device.
        loss: ``"plain"`` or a key of ``losses.LOSSES``.
        bound: a key of ``losses.BOUNDS``; with ``"plain"`` it serves validation alone.
        sparsity: weight of the sparsity loss; 0 for none.
        saturation: weight of its upper clip.
        bound_options: for the bound, for example ``iterations``.
    """

    def __init__(
        self,
        model: nn.Module,
        sample: Tensor,
        loss: str,
        bound: str,
        sparsity: float = 0.0,
        *,
        saturation: float = 1.0,
        **bound_options: Any,
    ) -> None:
        super().__init__()
        self.model = model
        bound = RENAMED["train"].get(bound, bound)
        if bound != "global-product":
            # BCP differentiates the box, the sparsity loss the intervals, the composed bound the slopes made of them.
            bound_options.setdefault("interval_gradients", bound == "local-lip" or loss == "bcp" or sparsity > 0)
        self.bound = make_bound(bound, model, sample, **bound_options)
        self.loss = None if loss == "plain" else make_loss(loss)
        self.sparsity_weight, self.sparsity = sparsity, SparsityLoss(saturation)

    def forward(self, x: Tensor, labels: Tensor, eps: float, kappa: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and counts for the log (sums over the batch): ``correct``, ``certified``."""
        if self.loss is None or (eps == 0.0 and kappa == 1.0):
            logits = self.model(x)
            correct = _correct(logits, labels)
            return F.cross_entropy(logits, labels), {"correct": correct, "certified": torch.zeros_like(correct)}
        output = self.bound(x, eps, labels)
        robust = self.loss(output.logits, output.pair_lipschitz, eps, labels, output.region)
        if self.sparsity_weight > 0:
            robust = robust + self.sparsity_weight * self.sparsity(output.intervals)
        return mixed_loss(output.logits, robust, labels, kappa), counts(output, eps, labels)

    @torch.no_grad()
    def evaluate(self, x: Tensor, labels: Tensor, eps: float) -> dict[str, Tensor]:
        """Sums over a batch: loss, correct and, by the bound's (training) estimate, certified."""
        output = self.bound(x, eps, labels)
        if self.loss is None:
            loss = F.cross_entropy(output.logits, labels)
        else:
            loss = self.loss(output.logits, output.pair_lipschitz, eps, labels, output.region)
        return {"loss": loss * len(labels), **counts(output, eps, labels)}


def counts(output: BoundOutput, eps: float, labels: Tensor) -> dict[str, Tensor]:
    """How many samples are right, and how many are right with a margin left at eps; ties count as neither."""
    worst = worst_case_logits(output.logits, output.pair_lipschitz, eps, labels, output.region)
    return {"correct": _correct(output.logits, labels), "certified": _correct(worst, labels)}


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.detach().gather(1, labels[:, None])
    rivals = logits.detach().scatter(1, labels[:, None], -torch.inf)
    return (own > rivals).all(dim=1).sum()
