"""``method="local-lip"``: from a wrapped model and a ball to bounds of its output, or of its Lipschitz constant."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.autolirpa.calls import double_input, in_float64
from lirpa_lip.autolirpa.reading import read_region
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import ShapeError
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.lower import Effort, lower_bounds
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.product import product_plan
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.local.rate_errors import rate_errors
from lirpa_lip.local.rows import check_specification, inference_error, output_upper, row_lipschitz, whole_lipschitz
from lirpa_lip.methods import names_at
from lirpa_lip.network.balance import balanced
from lirpa_lip.network.coefficient_errors import CoefficientErrors
from lirpa_lip.network.graph import NetworkGraph, build_graph, model_dtype
from lirpa_lip.network.intervals import lirpa_intervals, used_intervals
from lirpa_lip.network.linear_bound_errors import linear_bound_rounding
from lirpa_lip.network.node import Interval, intersect
from lirpa_lip.regions.region import Region
from lirpa_lip.results import Certificate, Certified, LipschitzResult
from lirpa_lip.trust.gate import check_graph
from lirpa_lip.trust.inherited import check_overlap
from lirpa_lip.trust.model import current_model
from lirpa_lip.trust.points import generator_of

#: Of bounds of outputs, and of Lipschitz constants.
METHODS = names_at("compute_bounds", "local")
CONSTANT_METHODS = names_at("local_lipschitz", "local")
#: Most passes of CROWN in which its rounding is looked for.
_WATCHED_PASSES = 3


@dataclass(frozen=True)
class OutputBounds(Certified):
    """Bounds of ``C f`` over a region.

    Attributes:
        lower, upper: ``(batch, specs)``, or ``None`` where they were not wanted.
        worth: of both together.
        seed: that repeats the run.
    """

    lower: Tensor | None
    upper: Tensor | None
    worth: Certificate
    seed: int


def local_lip_bounds(
    bounded: Any,
    x: Any,
    c: Tensor | None,
    method: str,
    *,
    want_lower: bool = True,
    want_upper: bool = True,
    threshold: float | Tensor | None = None,
) -> OutputBounds:
    """Bounds of ``C f`` over the region.

    A bound that is not wanted is ``None`` and costs nothing. Lower bounds are not optimised beyond ``threshold``.
    """
    config = LocalLipConfig.from_options(bounded.bound_opts)
    if method == "sdp-crown" and not config.optimize:
        config = replace(config, optimize=True)
    graph, region, dtype = prepare(bounded, x, config)
    rows = check_specification(c, len(region.eps), graph)
    prior, crown = _crown(bounded, x, rows, graph, region) if method == "local-lip-crown" else ({}, (None, None))
    limit = None if threshold is None else -_threshold(threshold, rows)
    # a descent and a threshold need what the product bound says first
    defer = threshold is None and not config.optimize
    norm = NormBudget(config, planned_norms(graph, config, defer))
    with _gradients_where_needed(graph, region):
        layers = propagate(graph, region, config, norm, prior, defer=defer)
        inference = inference_error(graph, rows, layers, config, dtype)
        # what rounding may take must be reached as well
        limit = None if limit is None else limit - inference
        below = output_upper(graph, region, -rows, layers, config, threshold=limit) if want_lower else None
        above = output_upper(graph, region, rows, layers, config) if want_upper else None
    lower = None if below is None else -outward_upper(below, dtype)
    upper = None if above is None else outward_upper(above, dtype)
    if crown != (None, None):
        with torch.no_grad():
            check_overlap(graph, region.centre, rows, (lower, upper), crown, dtype=dtype)
        lower = None if lower is None else torch.maximum(lower, -outward_upper(-crown[0], dtype))
        upper = None if upper is None else torch.minimum(upper, outward_upper(crown[1], dtype))
        if lower is not None and upper is not None:
            lower, upper = intersect((lower, upper), (lower, upper))  # rounding may have crossed them
    if config.inference is not None:
        lower = None if lower is None else -outward_upper(inference - lower.to(inference.dtype), dtype)
        upper = None if upper is None else outward_upper(inference + upper.to(inference.dtype), dtype)
    return OutputBounds(lower, upper, norm.worth, norm.seed)


def _threshold(threshold: float | Tensor, rows: Tensor) -> Tensor:
    limit = torch.as_tensor(threshold, dtype=rows.dtype, device=rows.device).detach()
    try:
        return limit.expand(rows.shape[:2])
    except RuntimeError:
        shape = tuple(limit.shape)
        raise ShapeError(f"decision_thresh has shape {shape}; give a number, or (batch, specs).") from None


def local_lip_constants(bounded: Any, x: Any, c: Tensor | None, method: str) -> LipschitzResult:
    """Lipschitz constants over all pairs of points of the region, of the rows of ``C f``, or of f for ``None``."""
    config = LocalLipConfig.from_options(bounded.bound_opts)
    graph, region, dtype = prepare(bounded, x, config)
    rows = None if c is None else check_specification(c, len(region.eps), graph)
    prior: dict[str, Interval] = {}
    if method == "local-lip-crown":
        prior, _ = _crown(bounded, x, check_specification(c, len(region.eps), graph), graph, region)
    passes = 2 if config.anchored else 1
    norm = NormBudget(config, passes * planned_norms(graph, config) + product_plan(graph, None) + 1)
    with _gradients_where_needed(graph, region):
        if config.anchored:
            # secants give tighter pre-activation bounds; the constant itself is about all pairs of points
            first = propagate(graph, region, config, norm, prior, intervals_only=True)
            prior = {layer.parent: (layer.lower, layer.upper) for layer in first.values()}
        layers = propagate(graph, region, config, norm, prior, anchored=False)
        if rows is None:
            upper = whole_lipschitz(graph, layers, config, norm, len(region.eps))
        else:
            upper = row_lipschitz(graph, rows, layers, config)
    counted = {name: _neurons(layer.slopes) for name, layer in layers.items()}
    stable, eliminated = (
        sum(c["stable"] + c["eliminated"] for c in counted.values()) if counted else None,
        sum(c["eliminated"] for c in counted.values()) if counted else None,
    )
    return LipschitzResult(
        upper=outward_upper(upper, dtype),
        lower=-outward_upper(-_lower(graph, region, rows, layers, norm.seed), dtype).clamp(max=0),
        worth=norm.worth,
        stable=stable,
        eliminated=eliminated,
        neurons=sum(layer.lower[0].numel() for layer in layers.values()),
        details={"seed": norm.seed, "layers": counted},
    )


def _neurons(slopes: SlopeRange) -> dict[str, Tensor]:
    """How many neurons of a layer are stable and not eliminated, open, and eliminated, per sample ``(batch,)``."""
    stable, eliminated = (t.flatten(1).sum(1) for t in (slopes.stable, slopes.eliminated))
    return {"stable": stable - eliminated, "open": slopes.stable[0].numel() - stable, "eliminated": eliminated}


def network_graph(bounded: Any, dtype: torch.dtype | None = None) -> NetworkGraph:
    """The traced network as affine nodes and activations; it references the current parameters.

    Raises:
        UnsupportedOperatorError, TrainingModeError, NonFiniteError: as named.
    """
    graph = build_graph(bounded, dtype)
    graph.check_finite()
    return graph


def _lower(graph: NetworkGraph, region: Region, c: Tensor | None, layers: Layers, seed: int) -> Tensor:
    rows = check_specification(c, len(region), graph)
    shaped = rows.reshape(*rows.shape[:2], *graph[graph.output].shape)
    errors = rate_errors(graph, layers)
    return lower_bounds(graph, region, shaped, whole=c is None, effort=Effort(seed=seed), errors=errors)


class Prepared(NamedTuple):
    """The graph and the region in the precision of a computation, and the precision of its results."""

    graph: NetworkGraph
    region: Region
    dtype: torch.dtype


def prepare(bounded: Any, x: Any, config: LocalLipConfig) -> Prepared:
    """`compared`, with the factors of products balanced over the region."""
    found = compared(bounded, x, config)
    return found._replace(graph=_balanced(found.graph, found.region))


def compared(bounded: Any, x: Any, config: LocalLipConfig, **taken: Any) -> Prepared:
    """What a computation starts from, once the graph has been compared with the model.

    Args:
        taken: which regions, see `lirpa_lip.autolirpa.reading.read_region`.
    """
    current_model(bounded)
    own = model_dtype(bounded)
    wide = config.precision == "float64" or (config.precision == "auto" and not config.is_estimate)
    dtype = torch.float64 if wide else (torch.float32 if config.precision == "float32" else own)
    if not config.is_estimate and torch.finfo(dtype).eps > torch.finfo(own).eps:
        # weights rounded to less than they are would be another network's
        dtype = own
    graph = network_graph(bounded, dtype)
    region = read_region(x, graph[graph.input].shape, dtype, config.image_box, **taken)
    points = region.sample(1, generator_of(bounded, region.centre.device))[:, 0]
    check_graph(bounded, graph, region.centre, points)
    return Prepared(graph, region, own)


def _balanced(graph: NetworkGraph, region: Region) -> NetworkGraph:
    if not graph.has_products:
        return graph
    generator = torch.Generator(region.centre.device).manual_seed(0)  # any points serve; the same make results repeat
    with torch.no_grad():
        return balanced(graph, region.centre, list(region.sample(4, generator).unbind(1)))


def _crown(bounded: Any, x: Any, c: Tensor, graph: NetworkGraph, region: Region) -> tuple[dict[str, Interval], tuple]:
    """CROWN's bounds of ``C f`` in float64, and what it found of the pre-activations on the way.

    Both are widened by the rounding of their computation. CROWN ignores a box that cuts the ball.
    """
    box = Region(region.centre.double(), region.eps.double()).interval()
    rows = {"C": c.double(), "method": "crown"}
    with in_float64(bounded):
        lower, upper = bounded.compute_bounds(x=double_input(x), **rows)
        used = used_intervals(bounded, graph)
        errors = linear_bound_rounding(graph, box, used)
        slack = torch.einsum("bso,bo->bs", c.double().abs(), errors[graph.output].flatten(1)) * (1 + 1e-6)
        if graph.has_products:  # through each of them absolute weights grow by a factor
            for _ in range(_WATCHED_PASSES):
                watch = CoefficientErrors(bounded, graph, box, used)
                with watch.watching():
                    again = bounded.compute_bounds(x=double_input(x), **rows)
                found = used_intervals(bounded, graph)
                if watch.holds(found):
                    (lower, upper), slack = again, watch.rows
                    errors = {name: watch.interval_error(name) for name in found}
                    break
                used = watch.hull(found)  # some were widened by more than there was room for
        prior = lirpa_intervals(bounded, graph, box, errors)
    return prior, (lower.flatten(1) - slack, upper.flatten(1) + slack)


def outward_upper(upper: Tensor, dtype: torch.dtype) -> Tensor:
    """Upper bounds in a precision, rounded up; by one unit at least, for the last operation.

    0 stays 0: a bound is 0 only where nothing that varies is left, since what is computed comes with its error.
    """
    high = upper.to(dtype)
    above = torch.nextafter(high, torch.full_like(high, torch.inf)).detach()
    # an infinite bound stays one: inf − inf would be NaN
    moved = torch.where(torch.isfinite(high), high + (above - high.detach()), high)
    return torch.where(upper == 0, high, moved)


def outward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Bounds in another precision, rounded away from each other."""
    return -outward_upper(-lower, dtype), outward_upper(upper, dtype)


@contextmanager
def _gradients_where_needed(graph: NetworkGraph, region: Region):
    """No autograd graph unless a parameter or the input asks for gradients in a context that records them."""
    needed = bool(graph.parameters()) or region.centre.requires_grad or region.eps.requires_grad
    with torch.set_grad_enabled(torch.is_grad_enabled() and needed):
        yield
