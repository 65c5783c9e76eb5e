"""The constants of a training bound from a pass with certified norms: the certifier's own, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lirpa_lip.bounded_module import BoundedModule
from lirpa_lip.comparison import ball
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.bounds import outward_upper, prepare
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.local.rows import row_lipschitz
from lirpa_lip.results import Certificate, Certified


@dataclass(frozen=True)
class CertifiedPairs(Certified):
    """Bounds (batch, classes) of how fast logit_y − logit_j moves away from its value at the sample, and their kind."""

    pairs: Tensor
    layers: Layers
    worth: Certificate


@torch.no_grad()
def certified_pairs(
    model: nn.Module, x: Tensor, eps: float | Tensor, labels: Tensor, config: LocalLipConfig
) -> CertifiedPairs:
    """Wraps the model as it is now, checks the graph, and bounds all pairs of each sample's label.

    Raises:
        LirpaLipError: the model cannot be traced, or is in training mode and depends on that.
    """
    bounded = BoundedModule(model, x[:1].detach().clone(), bound_opts={"local_lip": config})
    graph, region, dtype = prepare(bounded, ball(x, eps), config)  # type: ignore[arg-type]
    norm = NormBudget(config, planned_norms(graph, config))
    layers = propagate(graph, region, config, norm)
    identity = torch.eye(graph[graph.output].shape.numel(), dtype=graph.dtype, device=graph.device)
    rows = identity[labels].unsqueeze(1) - identity
    pairs = outward_upper(row_lipschitz(graph, rows, layers, config), dtype)
    return CertifiedPairs(pairs, layers, norm.worth)
