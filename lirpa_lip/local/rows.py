"""From rates and deviations to what users ask for: output bounds, Lipschitz constants, certified radii."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import NonFiniteError, ShapeError
from lirpa_lip.local.composed import composed_rate, composed_rows
from lirpa_lip.local.deferred import settle, with_least
from lirpa_lip.local.deviation import Deviation
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.product import layer_gains, local_rows, product_norms, product_rows, rate_of
from lirpa_lip.local.rate_errors import raised, rate_errors
from lirpa_lip.network.forward_error import forward_error
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import RowErrors, positive_slack
from lirpa_lip.precision import PRECISIONS
from lirpa_lip.regions.region import Region

#: Most elements of one batch of specification rows pulled back through the graph.
_ROW_ELEMENTS = 1 << 26


def check_specification(c: Tensor | None, batch: int, graph: NetworkGraph) -> Tensor:
    """``C`` as ``(batch, specs, outputs)``: the identity for ``None``, a shared ``(specs, outputs)`` expanded.

    Raises:
        ShapeError: ``C`` does not fit the batch and the network's flat output.
    """
    outputs = graph[graph.output].shape.numel()
    if c is None:
        return torch.eye(outputs, dtype=graph.dtype, device=graph.device).expand(batch, -1, -1)
    if c.ndim == 2:
        c = c.unsqueeze(0).expand(batch, -1, -1)
    if c.ndim != 3 or c.shape[0] not in (1, batch) or c.shape[2] != outputs:
        raise ShapeError(f"C has shape {tuple(c.shape)}, expected (batch={batch}, specs, outputs={outputs}).")
    if not bool(torch.isfinite(c).all()):
        raise NonFiniteError("C", "specifications are finite linear functions of the output")
    return c.expand(batch, -1, -1).to(graph.dtype)


def output_upper(
    graph: NetworkGraph,
    region: Region,
    c: Tensor,
    layers: Layers,
    config: LocalLipConfig,
    *,
    threshold: Tensor | None = None,
) -> Tensor:
    """Upper bounds of ``C f(x)`` over the region, ``(batch, specs)``; of ``−C`` they are minus the lower bounds.

    The product bound gives ``C f(centre) + eps · Lip``; the composed bound a value of its own; ``"auto"`` the smaller.

    Args:
        threshold: ``(batch, specs)``. A row that is below it, or at the centre is not, is not optimised any further.
    """
    parts = _chunks(graph, c)
    limits = [None] * len(parts) if threshold is None else threshold.split([p.shape[1] for p in parts], dim=1)
    found = [_output_upper(graph, region, part, layers, config, limit) for part, limit in zip(parts, limits)]
    upper = torch.cat(found, dim=1)
    if bool(torch.isnan(upper).any()):
        raise NonFiniteError("an output bound", "the network's values overflow; check its weights and the input")
    return upper


def _chunks(graph: NetworkGraph, c: Tensor) -> tuple[Tensor, ...]:
    widest = max(n.shape.numel() for n in graph)
    return c.split(max(1, _ROW_ELEMENTS // (widest * c.shape[0])), dim=1)


def _output_upper(
    graph: NetworkGraph, region: Region, c: Tensor, layers: Layers, config: LocalLipConfig, threshold: Tensor | None
) -> Tensor:
    centre = graph.values(region.centre)[graph.output].flatten(1)
    at = torch.einsum("bso,bo->bs", c, centre)
    rows = c.reshape(*c.shape[:2], *graph[graph.output].shape)
    upper = _by_interval(graph, c, layers)
    found: Tensor | None = None
    if layers.deferred:
        found = at + Deviation(graph, layers, region).upper(graph.output, rows)
        with torch.no_grad():
            least = at + product_rows(graph, graph.output, rows, with_least(layers), region.eps)
        if not bool((least >= found).all()):
            settle(layers)
    if config.bound != "composed" and not layers.deferred:
        errors = RowErrors(layers.slack, len(c))
        reach = product_rows(graph, graph.output, rows, layers, region.eps, visit=errors.visit)
        upper = torch.minimum(upper, at + errors.added(reach, graph))
    if found is not None:
        upper = torch.minimum(upper, found)
    elif config.bound != "product":
        goal = None
        if threshold is not None:
            # where the product bound is below it, nothing is left to reach
            goal = torch.where(upper < threshold, 0.0, threshold - at)
        found = at + Deviation(graph, layers, region).upper(graph.output, rows, config.optimize, goal)
        upper = torch.minimum(upper, found)
    if config.is_estimate:
        return upper
    # of the row's product with the value at the centre, and of the last additions
    size = torch.einsum("bso,bo->bs", c.detach().abs(), centre.detach().abs())
    return upper + positive_slack(c.shape[2], c.dtype) * (size + (upper.detach() - at.detach()).abs())


def _by_interval(graph: NetworkGraph, c: Tensor, layers: Layers) -> Tensor:
    """``max c · z`` over the output's interval: ``Σ c⁺ u + c⁻ l``."""
    if graph.output not in layers.intervals:
        return torch.full(c.shape[:2], torch.inf, dtype=c.dtype, device=c.device)
    low, high = (t.flatten(1) for t in layers.intervals[graph.output])
    ends = torch.einsum("bso,bo->bs", c.clamp(min=0), high) + torch.einsum("bso,bo->bs", c.clamp(max=0), low)
    if not layers.slack:
        return ends
    size = torch.einsum("bso,bo->bs", c.detach().abs(), torch.maximum(low.abs(), high.abs()).detach())
    return ends + positive_slack(2 * c.shape[2], c.dtype) * size


@torch.no_grad()
def inference_error(graph: NetworkGraph, c: Tensor, layers: Layers, config: LocalLipConfig, own: torch.dtype) -> Tensor:
    """How far ``C f(x)``, run in ``config.inference``, can be from its exact value, anywhere in the region.

    ``(batch, specs)``: 0 where no such precision is set, infinite where values may overflow it.

    Args:
        own: the model's own precision, in which inputs come.
    """
    if config.inference is None:
        return torch.zeros(c.shape[:2], dtype=c.dtype, device=c.device)
    dtype = PRECISIONS[config.inference]
    rounded = torch.finfo(dtype).eps > torch.finfo(own).eps
    error = forward_error(graph, layers.intervals, dtype, rounded_input=rounded)[graph.output].flatten(1).unsqueeze(1)
    used = c != 0
    total = torch.where(used, c.abs() * torch.where(used, error, 0.0), 0.0).sum(2)
    return total * (1 + positive_slack(c.shape[2], c.dtype))


def row_lipschitz(graph: NetworkGraph, c: Tensor, layers: Layers, config: LocalLipConfig) -> Tensor:
    """Upper bounds of ``Lip(c_s · f)`` for each specification row, ``(batch, specs)``."""
    found = []
    errors = None if config.is_estimate else rate_errors(graph, layers)
    for part in _chunks(graph, c):
        rows = part.reshape(*part.shape[:2], *graph[graph.output].shape)
        value = torch.full(part.shape[:2], torch.inf, dtype=graph.dtype, device=graph.device)
        for kind, rates in (("product", product_rows), ("composed", composed_rows)):
            if config.bound in ("auto", kind):
                own = RowErrors({} if errors is None else errors.slack, len(part))
                rate = rates(graph, graph.output, rows, layers, visit=own.visit)
                value = torch.minimum(value, own.added(rate, graph))
        found.append(value if errors is None else raised(graph, rows, value, layers, errors))
    return torch.cat(found, dim=1)


def whole_lipschitz(
    graph: NetworkGraph, layers: Layers, config: LocalLipConfig, norm: NormBudget, batch: int
) -> Tensor:
    """Upper bound of the whole network's ℓ₂ → ℓ₂ Lipschitz constant, ``(batch,)``."""
    value = torch.full((batch,), torch.inf, dtype=graph.dtype, device=graph.device)
    gains, room = None, 1.0
    if not config.is_estimate:
        gains = layer_gains(graph, graph.output, None, local_rows(graph, graph.output, layers), layers)
        room = 1 + positive_slack(len(layers), graph.dtype)
    if config.bound != "composed":
        norms = product_norms(graph, None, None, layers, norm)
        if gains is not None:
            norms = {s: n + gains[s].gamma * gains[s].size for s, n in norms.items()}
        value = torch.minimum(value, rate_of(norms, layers))
    if config.bound != "product":
        value = torch.minimum(value, composed_rate(graph, graph.output, None, layers, norm, gains=gains))
    return value * room
