"""``method="clarke-jacobian"`` and its kin: from a wrapped model and a region to Lipschitz constants of every norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import auto_LiRPA
import torch
from torch import Tensor

from lirpa_lip.autolirpa.calls import double_input, in_float64
from lirpa_lip.autolirpa.perturbation import check_ball_and_box
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.errors import ShapeError, UnsupportedNormError
from lirpa_lip.jacobian.constants import METHODS, check_norm
from lirpa_lip.jacobian.options import ClarkeOptions
from lirpa_lip.local.bounds import network_graph, outward
from lirpa_lip.local.rows import check_specification
from lirpa_lip.network.graph import NetworkGraph, model_dtype
from lirpa_lip.network.intervals import lirpa_intervals
from lirpa_lip.precision import rounded_up
from lirpa_lip.regions.input_set import InputSet
from lirpa_lip.regions.region import box_ends
from lirpa_lip.results import DETERMINISTIC, LipschitzResult
from lirpa_lip.search.constants import clarke_lipschitz
from lirpa_lip.trust.gate import check_graph
from lirpa_lip.trust.model import current_model
from lirpa_lip.trust.points import generator_of

JACOBIAN_METHODS = METHODS


def jacobian_constants_of(
    bounded: Any, x: Any, c: Tensor | None, method: str, norm: float, options: Mapping
) -> LipschitzResult:
    """Constants of the rows of ``C f``, or of f for ``C=None``, over the closed region of ``x``.

    Raises:
        UnknownMethodError, UnsupportedNormError, ShapeError, ConfigError, NonFiniteError: as named.
    """
    settings, norm = ClarkeOptions.from_keywords(options), check_norm(norm)
    graph, inputs, dtype = prepare_region(bounded, x)
    rows = check_specification(c, len(inputs), graph)
    seed = rows.reshape(*rows.shape[:2], *graph[graph.output].shape).detach()
    prior = alpha_crown_intervals(bounded, x, graph, inputs) if settings.intermediate == "alpha-crown" else {}
    upper, lower, details = clarke_lipschitz(graph, inputs, seed, c is None, method, norm, settings, prior)
    slopes = details.pop("slopes").values()
    stable, eliminated = (
        sum((getattr(s, kind).flatten(1).sum(1) for s in slopes), torch.zeros(len(inputs), dtype=torch.long))
        for kind in ("stable", "eliminated")
    )
    return LipschitzResult(
        upper=outward(upper, upper, dtype)[1],
        lower=outward(lower, lower, dtype)[0].clamp(min=0),
        worth=DETERMINISTIC,
        stable=stable,
        eliminated=eliminated,
        neurons=sum(s.low[0].numel() for s in slopes),
        details=details,
    )


def prepare_region(bounded: Any, x: Any) -> tuple[NetworkGraph, InputSet, torch.dtype]:
    """The graph in float64, the closed region of ``x``, and the model's own precision."""
    config = LocalLipConfig.from_options(bounded.bound_opts)
    current_model(bounded)
    graph = network_graph(bounded, torch.float64)
    inputs = input_set(x, config, graph)
    check_graph(bounded, graph, inputs.centre, inputs.sample(1, generator_of(bounded, inputs.centre.device))[:, 0])
    return graph, inputs, model_dtype(bounded)


def input_set(x: Any, config: LocalLipConfig, graph: NetworkGraph) -> InputSet:
    """The region of ``x``: for ``norm=inf`` the box ``x ± eps``, or ``x_L … x_U`` in its place; for ``norm=2`` the
    ball.

    The box of possible inputs (``image_box``; for a ball also ``x_L … x_U``) cuts either.

    Raises:
        ShapeError: ``x`` is no single ``BoundedTensor`` of the shape the model was wrapped with.
        UnsupportedNormError: a region of another norm.
    """
    x = x[0] if isinstance(x, (tuple, list)) and len(x) == 1 else x
    if not isinstance(x, auto_LiRPA.BoundedTensor):
        raise ShapeError("x must be one BoundedTensor, as in x=(BoundedTensor(x, PerturbationLpNorm(eps=0.1)),).")
    expected = graph[graph.input].shape
    if x.shape[1:] != expected:
        raise ShapeError(
            f"the input has shape {tuple(x.shape)}, expected (batch, *{tuple(expected)}), "
            "the shape the model was wrapped with."
        )
    region, norm = x.ptb, getattr(x.ptb, "norm", None)
    if norm not in (2, math.inf):
        raise UnsupportedNormError(norm, "the region of a Jacobian bound", (math.inf, 2))
    check_ball_and_box(region, x)
    centre = x.as_subclass(Tensor).detach().double()
    as_input = x.as_subclass(Tensor).detach()

    def ends(low: float | Tensor | None, high: float | Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        least, most = box_ends(as_input, low, high, torch.float64)
        return None if low is None else least, None if high is None else most

    low, high = getattr(region, "x_L", None), getattr(region, "x_U", None)
    image = config.image_box
    eps = rounded_up(region.eps, torch.float64, centre.device)
    if norm == 2:
        low = image[0] if low is None and image else low
        high = image[1] if high is None and image else high
        return InputSet.ball(centre, eps, *ends(low, high))
    low, high = ends(low, high)
    if eps.ndim == 1 and eps.numel() not in (1, len(centre)):
        raise ShapeError(f"eps has {eps.numel()} entries for a batch of {len(centre)}; give one for each sample.")
    eps = eps.reshape(-1, *[1] * (centre.ndim - 1)) if eps.ndim == 1 else eps
    low = torch.nextafter(centre - eps, torch.full_like(centre, -math.inf)) if low is None else low
    high = torch.nextafter(centre + eps, torch.full_like(centre, math.inf)) if high is None else high
    if image:
        start, end = box_ends(as_input, *image, torch.float64)
        low, high = torch.maximum(low, start), torch.minimum(high, end)
    return InputSet.box(centre, low, high)


def alpha_crown_intervals(bounded: Any, x: Any, graph: NetworkGraph, inputs: InputSet) -> dict:
    """Pre-activation bounds that auto_LiRPA's optimised CROWN leaves on its nodes, in float64 and less its rounding."""
    box = (inputs.low, inputs.high)
    if inputs.radius is not None:  # auto_LiRPA's ball is not cut by the box of possible inputs
        wide = inputs.radius.reshape(-1, *[1] * (inputs.centre.ndim - 1))
        box = (torch.minimum(inputs.low, inputs.centre - wide), torch.maximum(inputs.high, inputs.centre + wide))
    with in_float64(bounded):
        bounded.compute_bounds(x=double_input(x), method="alpha-crown")
        found = lirpa_intervals(bounded, graph, box)
    return {name: tuple(t.detach() for t in pair) for name, pair in found.items()}
