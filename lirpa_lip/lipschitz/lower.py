"""Lower bounds of Lipschitz constants: norms of the Jacobian at points of the region."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.graph import NetworkGraph
from lirpa_lip.region import Region, safe_norm


def jacobian_rows(graph: NetworkGraph, x: Tensor, c: Tensor) -> Tensor:
    """Gradients of ``C f`` at points ``x (batch, *shape)``, by autograd, ``(batch, specs, *shape)``."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        out = graph.values(point)[graph.output].flatten(1)
        rows = []
        for s in range(c.shape[1]):
            objective = (out * c[:, s].detach()).sum()
            (row,) = torch.autograd.grad(objective, point, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(point) if row is None else row.detach())
    return torch.stack(rows, dim=1)


@torch.no_grad()
def sampled_rates(
    graph: NetworkGraph, region: Region, c: Tensor | None, samples: int = 8, seed: int | None = None
) -> Tensor:
    """Largest Jacobian norm found: row norms ``(batch, specs)``, or spectral norms ``(batch,)`` for ``c=None``.

    The points are the centre and random ones of the region; a network is differentiable at almost all of them, and
    there the Jacobian's norm is a limit of rates of change, so it never exceeds the constant.

    Args:
        seed: of the random points; ``None`` takes them from torch's global generator.
    """
    generator = None if seed is None else torch.Generator(graph.device).manual_seed(seed)
    whole = c is None
    if whole:
        outputs = graph[graph.output].shape.numel()
        c = torch.eye(outputs, dtype=graph.dtype, device=graph.device).expand(len(region.eps), -1, -1)
    best = None
    for index in range(samples):
        x = region.centre if index == 0 else region.sample(generator)
        rows = jacobian_rows(graph, x, c).flatten(2)
        value = torch.linalg.matrix_norm(rows, 2) if whole else safe_norm(rows)
        best = value if best is None else torch.maximum(best, value)
    return best
