"""Training losses that take their Lipschitz bound as a plug-in, each usable alone in anyone's loop."""

from __future__ import annotations

from lirpa_lip.errors import UnknownMethodError
from lirpa_lip.losses.annealed import LogitAnnealingLoss
from lirpa_lip.losses.bcp import BCPLoss
from lirpa_lip.losses.bound import BOUNDS, ActivationInterval, BoundOutput, FeatureRegion, LipschitzBound, make_bound
from lirpa_lip.losses.cll import CalibratedMarginLoss
from lirpa_lip.losses.crm import CRMLoss
from lirpa_lip.losses.emma import EMMALoss
from lirpa_lip.losses.gloro import GloRoLoss
from lirpa_lip.losses.sparsity import SparsityLoss
from lirpa_lip.losses.worst_case import RobustLoss, mixed_loss, worst_case_logits

LOSSES: dict[str, type[RobustLoss]] = {
    **{"bcp": BCPLoss, "gloro": GloRoLoss, "emma": EMMALoss, "crm": CRMLoss},
    **{"logit-annealing": LogitAnnealingLoss, "cll": CalibratedMarginLoss},
}
"""Name -> class. ``plain`` (cross-entropy alone) is the trainer's affair: it needs no bound."""


def make_loss(name: str) -> RobustLoss:
    """Builds a loss, a `RobustLoss`, with its default settings.

    Args:
        name: a key of ``LOSSES``: bcp, cll, crm, emma, gloro or logit-annealing.

    Raises:
        UnknownMethodError: no such loss.
    """
    if name not in LOSSES:
        raise UnknownMethodError(name, LOSSES, kind="loss")
    return LOSSES[name]()


__all__ = [
    "BOUNDS",
    "LOSSES",
    "ActivationInterval",
    "BCPLoss",
    "BoundOutput",
    "CRMLoss",
    "CalibratedMarginLoss",
    "EMMALoss",
    "FeatureRegion",
    "GloRoLoss",
    "LipschitzBound",
    "LogitAnnealingLoss",
    "RobustLoss",
    "SparsityLoss",
    "make_bound",
    "make_loss",
    "mixed_loss",
    "worst_case_logits",
]
