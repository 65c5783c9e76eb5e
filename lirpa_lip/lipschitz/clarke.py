"""Local Lipschitz constants from bounds of the Clarke Jacobian: one call for the naive product, Fast-Lip's intervals,
RecurJac, the tight linear relaxation, and branch and bound on top of it.

Each method's value is the least of its own and of the weaker methods', so that
``clarke-jacobian ≤ recurjac ≤ fastlip ≤ naive`` holds by construction.

Sources: Shi et al., NeurIPS 2022 (arXiv 2210.07394); Weng et al., ICML 2018 (Fast-Lip); Zhang et al., AAAI 2019
(RecurJac).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lirpa_lip.errors import UnknownMethodError, UnsupportedNormError
from lirpa_lip.graph import NetworkGraph
from lirpa_lip.methods import names_at

from .clarke_forward import Forward, Interval, forward_bounds
from .clarke_lower import lower_bounds
from .clarke_options import ClarkeOptions
from .clarke_region import InputSet
from .jacobian_bounds import Backward, backward_bounds
from .jacobian_naive import naive_bounds
from .jacobian_norms import NORMS, row_norms, whole_norm
from .jacobian_relax import INTERVAL, TIGHT

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
    graph: NetworkGraph, forward: Forward, seed: Tensor, method: str, norm: float, options: ClarkeOptions
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
    known = plain.cotangents
    for name, form in (("recurjac", INTERVAL), ("clarke-jacobian", TIGHT)):
        if method in found:
            break
        entries = entry_count(graph, seed, norm, options)
        result = backward_bounds(graph, forward.slopes, seed, known, form, entries=entries, norm=norm)
        rows = row_norms(graph, result, norm)
        before = found[next(reversed(found))]
        bounds = Bounds(torch.minimum(rows, before.rows), rows, result)
        whole = whole_norm(bounds.rows, result.cotangents[graph.input], norm)
        found[name] = Bounds(bounds.rows, torch.minimum(whole, before.whole), result)
        known = result.cotangents
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


@torch.no_grad()
def clarke_lipschitz(
    graph: NetworkGraph,
    inputs: InputSet,
    seed: Tensor,
    whole: bool,
    method: str = "clarke-jacobian",
    norm: float = math.inf,
    options: ClarkeOptions | None = None,
    known: Mapping[str, Interval] | None = None,
) -> tuple[Tensor, Tensor, dict]:
    """Upper and lower bounds of local Lipschitz constants over a closed region, and details.

    Args:
        graph: the network, in float64.
        seed: rows of C, ``(batch, rows, *output shape)``; the identity for the network's own outputs.
        whole: bound the matrix ``‖·‖_p → ‖·‖_p``, ``(batch,)``, not each row.
        known: valid pre-activation bounds from elsewhere.

    Returns:
        ``(upper, lower, details)``; ``details["bounds"]`` holds the upper bounds of the weaker methods too.

    Raises:
        UnknownMethodError, UnsupportedNormError, ConfigError: as named.
    """
    if method not in METHODS:
        raise UnknownMethodError(method, METHODS)
    norm, options = check_norm(norm), options or ClarkeOptions()
    forward = forward_bounds(graph, inputs, known=known, crown=options.intermediate != "ibp")
    found = jacobian_constants(graph, forward, seed, method, norm, options)
    lower, points = lower_bounds(graph, inputs, seed, norm, whole, forward, options.samples, options.steps)
    details: dict = {"bounds": {name: (b.whole if whole else b.rows) for name, b in found.items()}}
    upper = details["bounds"][method]
    if method == "clarke-jacobian" and (options.time_limit > 0 or options.resume is not None):
        from .branch_and_bound import BranchAndBound

        search = BranchAndBound(graph, inputs, seed, whole, norm, options)
        upper, lower, report = search.run(forward, found[method], upper, lower, points)
        details.update(report)
    details["entries"] = found[method].entries
    details["slopes"] = forward.slopes
    return upper, lower, details
