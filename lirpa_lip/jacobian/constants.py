"""Local Lipschitz constants from bounds of the Clarke Jacobian: one call for the naive product, Fast-Lip's intervals,
RecurJac, the tight linear relaxation, and branch and bound on top of it.

Each method's value is the least of its own and of the weaker methods', so that
``clarke-jacobian ≤ recurjac ≤ fastlip ≤ naive`` holds by construction.

Sources: Shi et al., NeurIPS 2022 (arXiv 2210.07394); Weng et al., ICML 2018 (Fast-Lip); Zhang et al., AAAI 2019
(RecurJac).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.errors import UnsupportedNormError
from lirpa_lip.jacobian.backward import backward_bounds
from lirpa_lip.jacobian.forward import Forward, Interval
from lirpa_lip.jacobian.moving import moving_slopes
from lirpa_lip.jacobian.naive import naive_bounds
from lirpa_lip.jacobian.norms import NORMS, row_norms, whole_norm
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.jacobian.products import INTERVAL, TIGHT
from lirpa_lip.jacobian.tangents import Backward
from lirpa_lip.methods import names_at
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region

METHODS = names_at("local_lipschitz", "jacobian")


@dataclass(frozen=True)
class Bounds:
    """Constants of one method: ``rows (batch, rows)``, ``whole (batch,)``, entries of the Jacobian ``(batch, rows,
    *in)``."""

    rows: Tensor
    whole: Tensor
    backward: Backward | None = None

    @property
    def entries(self) -> Interval | None:
        return None if self.backward is None else next(reversed(self.backward.cotangents.values()))

    def least(self, other: Bounds) -> Bounds:
        """The least of two valid answers, with this one's entries."""
        rows, whole = torch.minimum(self.rows, other.rows), torch.minimum(self.whole, other.whole)
        return Bounds(rows, whole, self.backward)


def check_norm(norm: float) -> float:
    """``norm`` as one of ∞, 2 and 1.

    Raises:
        UnsupportedNormError: another one.
    """
    try:
        value = float(norm)
    except (TypeError, ValueError):
        value = math.nan
    if value not in NORMS:
        raise UnsupportedNormError(norm, "a Jacobian bound", NORMS)
    return value


def jacobian_constants(
    graph: NetworkGraph,
    inputs: Region,
    forward: Forward,
    seed: Tensor,
    *,
    method: str,
    norm: float,
    options: ClarkeOptions,
) -> dict[str, Bounds]:
    """Bounds by ``method`` and by every weaker one, weakest first.

    Args:
        seed: rows of C, ``(batch, rows, *output shape)``.
    """
    found = {"naive": Bounds(*naive_bounds(graph, forward.slopes, seed, norm))}
    if method == "naive":
        return found
    plain = backward_bounds(graph, forward.slopes, seed, pushes=False)
    lower, upper = plain.cotangents[graph.input]
    worst = torch.maximum(lower.abs(), upper.abs()).flatten(2) * (1 + 1e-12)
    rows = {math.inf: worst.sum(-1), 2: worst.square().sum(-1).sqrt(), 1: worst.amax(-1)}[norm]
    rows = torch.where(torch.isnan(rows), torch.inf, rows * (1 + 1e-12))
    found["fastlip"] = Bounds(rows, whole_norm(rows, (lower, upper), norm), plain).least(found["naive"])
    prior = plain.cotangents
    moving = moving_slopes(graph, inputs, forward) if method == "clarke-jacobian" else None
    for name, form in (("recurjac", INTERVAL), ("clarke-jacobian", TIGHT)):
        if method in found:
            break
        entries = entry_count(graph, seed, norm, options)
        result = backward_bounds(graph, forward.slopes, seed, prior, form, entries=entries, norm=norm, moving=moving)
        rows = row_norms(graph, result, norm)
        before = found[next(reversed(found))]
        bounds = Bounds(torch.minimum(rows, before.rows), rows, result)
        whole = whole_norm(bounds.rows, result.cotangents[graph.input], norm)
        found[name] = Bounds(bounds.rows, torch.minimum(whole, before.whole), result)
        prior = result.cotangents
    return found


#: Multiplications (roughly) that tightening all entries of one sample may cost before only some are.
_ENTRY_WORK = 2e11


def entry_count(graph: NetworkGraph, seed: Tensor, norm: float, options: ClarkeOptions) -> int:
    """How many entries of each row get a push of their own."""
    if options.entries is not None:
        return options.entries
    work = sum(m.in_numel + m.out_numel for node in graph if node.maps is not None for m in node.maps)
    # a dense map of n × m costs n·m; convolutions cost some 50 per element; either way this is an order of magnitude
    affordable = _ENTRY_WORK / (100 * max(1, work) * 2 * seed.shape[0] * seed.shape[1])
    return int(min(graph[graph.input].shape.numel(), max(16, affordable)))
