"""auto_LiRPA's own methods behind the gate: the model's live tensors before, valid numbers after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from auto_LiRPA.utils import unpack_inputs
from torch import Tensor

from lirpa_lip.errors import InvalidBoundError
from lirpa_lip.network.forward_error import first_order
from lirpa_lip.network.graph import NetworkGraph, build_graph, model_dtype
from lirpa_lip.trust.gate import check_traced
from lirpa_lip.trust.live import model_of, refresh
from lirpa_lip.trust.model import reference, training_dependent
from lirpa_lip.trust.points import generator_of, region_point
from lirpa_lip.trust.traced import traced_spread

#: Bounds are computed by more operations than values: their own rounding beside that of the values.
_SAFETY, _FEW = 16.0, 32
#: Most entries whose rounding is derived, the worst first.
_MOST = 32
#: In a training step this many samples of a batch are checked, another few each time.
_IN_TRAINING = 4
#: Arguments by which a caller restricts or replaces what is bounded, so that a value may lie outside.
_RESTRICTING = ("intermediate_layer_bounds", "interm_bounds", "reference_bounds", "aux_reference_bounds",
                "intermediate_constr", "cutter", "aux")  # fmt: skip


Sides = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Values:
    """What ``C f`` (or ``C`` times a node) is at points of the region.

    Attributes:
        points: inputs, each ``(n, *shape)``.
        samples: ``(n,)``, the row of the bounds that each point belongs to.
        at: ``(n, *node shape)``.
    """

    points: tuple[Tensor, ...]
    samples: Tensor
    at: Tensor


def checked_bounds(bounded: Any, call: dict, inherited: Callable[[], Any]) -> Any:
    """What ``inherited()`` returns, if it is bounds.

    Args:
        call: the arguments of ``compute_bounds``, by name.

    Raises:
        TraceMismatchError, UntraceableError, ConfigError: the graph is not the model (`lirpa_lip.trust.gate`).
        InvalidBoundError: NaN, a lower bound above the upper one, or a value of the model outside.
    """
    if getattr(bounded, "_inside_a_call", False) or model_of(bounded) is None:
        return inherited()
    values = None
    if not getattr(bounded, "_in_float64", False):  # a method of ours asks, and has compared graph and model
        refresh(bounded)
        values = _values(bounded, call)
    bounded.__dict__["_inside_a_call"] = True
    try:
        result = inherited()
    finally:
        bounded.__dict__.pop("_inside_a_call", None)
    restricted = any(call.get(name) is not None for name in _RESTRICTING) or _constrained(call)
    _check(bounded, call, result, values, restricted)
    return result


def _constrained(call: dict) -> bool:
    """Whether linear constraints cut the region (0.7), so that its centre, too, may lie outside."""
    if call.get("x") is None:
        return False
    inputs = call["x"] if isinstance(call["x"], (tuple, list, dict)) else (call["x"],)
    return any(getattr(getattr(t, "ptb", None), "constraints", None) is not None for t in unpack_inputs(inputs))


def _values(bounded: Any, call: dict) -> Values | None:
    """Passes the gate; the model's values, or ``None`` where there is no input or no fixed function to ask."""
    if call.get("x") is None or training_dependent(model_of(bounded)) or _training_nodes(bounded):
        return None
    inputs = unpack_inputs(call["x"] if isinstance(call["x"], (tuple, list, dict)) else (call["x"],))
    generator = generator_of(bounded)
    batch = len(inputs[0])
    samples = torch.arange(batch)
    step = torch.is_grad_enabled() and batch > 2 * _IN_TRAINING and all(len(t) == batch for t in inputs)
    if step:
        samples = torch.randperm(batch, generator=generator)[:_IN_TRAINING]
    centre = [t.detach().as_subclass(Tensor)[samples.to(t.device)] for t in inputs]
    sample = [region_point(t, getattr(t, "ptb", None), generator)[samples.to(t.device)] for t in inputs]
    points = tuple(torch.cat(pair) for pair in zip(centre, sample, strict=True))
    node, found = call.get("final_node_name"), reference(bounded, points, len(samples), watched=not step)
    at = found.values
    if not step or node:
        traced = check_traced(bounded, found, len(samples), node)
        at = traced if node else at
    return Values(points, torch.cat([samples, samples]).to(at.device), at)


def _training_nodes(bounded: Any) -> bool:
    kinds = ("BoundBatchNormalization", "BoundDropout")
    return any(type(n).__name__ in kinds and n.training for n in bounded._modules.values())


def _check(bounded: Any, call: dict, result: Any, values: Values | None, restricted: bool) -> None:
    method = call.get("method", "backward")
    if not isinstance(result, (tuple, list)) or len(result) < 2:
        return
    lower, upper = (_flat(t.detach()) if isinstance(t, Tensor) and t.ndim > 0 else None for t in result[:2])
    for side in (lower, upper):
        if side is not None and bool(torch.isnan(side).any()):
            raise _invalid(bounded, method, "they contain NaN")
    if restricted:
        return
    allowed = _Allowance(bounded, call, values)
    if lower is not None and upper is not None:
        crossed = lower > upper
        if bool(crossed.any()):
            allowed.check(crossed, lower, upper, method, "a lower bound of {:.9g} lies above the upper one, {:.9g}")
    if values is None:
        return
    value = _specified(values.at, call.get("C"), values.samples)
    for side, wrong, text in (
        (lower, torch.gt, "a lower bound of {:.9g}, where the model's value is {:.9g}"),
        (upper, torch.lt, "an upper bound of {:.9g}, where the model's value is {:.9g}"),
    ):
        if side is None:
            continue
        count, wanted = side.shape[1], value.shape[1]
        if count != wanted and call.get("C") is not None:
            reason = f"there are {count} numbers a sample for the {wanted} rows of C; flatten the model's output"
            raise _invalid(bounded, method, reason)
        if count != wanted:
            continue
        mine = side[values.samples]
        if bool((torch.isnan(value) & torch.isfinite(mine)).any()):
            raise _invalid(bounded, method, "they are finite where the model's own value is NaN")
        outside = wrong(mine, value)
        if bool(outside.any()):
            allowed.check(outside, mine, value, method, text, of_points=True)


def _flat(t: Tensor) -> Tensor:
    """(batch, entries); one number a sample is one entry."""
    return t.flatten(1) if t.ndim > 1 else t.unsqueeze(1)


def _specified(at: Tensor, c: Tensor | None, samples: Tensor) -> Tensor:
    at = _flat(at)
    if c is None:
        return at
    c = c.detach().flatten(2)
    c = c.expand(int(samples.max()) + 1, *c.shape[1:])[samples] if len(c) == 1 else c[samples]
    return torch.einsum("bso,bo->bs", c.double(), at.double()).to(at.dtype)


def check_overlap(
    graph: NetworkGraph, x: Tensor, rows: Tensor, ours: Sides, crown: Sides, *, dtype: torch.dtype
) -> None:
    """Refuses to intersect our bounds of ``C f`` with CROWN's where both, or CROWN's own, cannot be right.

    Args:
        graph: in the precision of the computation, as ``x`` (batch, *shape) and ``rows`` (batch, specs, outputs).
        dtype: the model's.

    Raises:
        InvalidBoundError: a lower bound lies above an upper bound, or the value at ``x``, by more than rounding.
    """
    value = torch.einsum("bso,bo->bs", rows, graph.values(x)[graph.output].flatten(1))
    mine, theirs, centre = "local-lip's {} bound", "CROWN's {} bound", "the value at the centre"
    pairs = [(ours[0], crown[1], mine, theirs), (crown[0], ours[1], theirs, mine), (crown[0], crown[1], theirs, theirs)]
    pairs += [(crown[0], value, theirs, centre), (value, crown[1], centre, theirs)]
    remedy = 'one of them is wrong: method="local-lip" does without CROWN'
    for low, high, below, above in pairs:
        if low is None or high is None:
            continue
        low, high = low.flatten(1).to(graph.dtype), high.flatten(1).to(graph.dtype)
        index = (~(low <= high)).nonzero()[:_MOST]  # NaN too
        if not len(index):
            continue
        sample, row = index.T
        allowed = _SAFETY * first_order(graph, x[sample], rows[sample, row], dtype, dtype)
        over = index[~((low - high)[sample, row] <= allowed)]
        if len(over):
            at = tuple(over[0].tolist())
            texts = below.format("lower"), float(low[at]), above.format("upper"), float(high[at])
            raise InvalidBoundError("local-lip-crown", "{} {:.9g} lies above {} {:.9g}".format(*texts), remedy)


class _Allowance:
    """How far rounding may put a value outside its bounds: derived only where one is outside."""

    def __init__(self, bounded: Any, call: dict, values: Values | None) -> None:
        self.bounded, self.call, self.values = bounded, call, values

    def check(
        self, where: Tensor, found: Tensor, limit: Tensor, method: str, text: str, of_points: bool = False
    ) -> None:
        unit = torch.finfo(found.dtype).eps
        excess = torch.where(where, (found - limit).abs(), 0.0)
        index = (excess > _FEW * unit * (found.abs() + limit.abs())).nonzero()
        if not len(index):
            return
        order = excess[index[:, 0], index[:, 1]].argsort(descending=True)[:_MOST]
        index = index[order]
        allowed = self._of(index, of_points, unit)
        over = excess[index[:, 0], index[:, 1]] > allowed
        if bool(over.any()):
            row, column = index[over][0].tolist()
            reason = text.format(float(found[row, column]), float(limit[row, column]))
            raise _invalid(self.bounded, method, reason)

    def _of(self, index: Tensor, of_points: bool, unit: float) -> Tensor:
        """``(n,)``: what rounding may do to row ``index[:, 1]`` of sample, or of point, ``index[:, 0]``."""
        values = self.values
        if values is None:  # no value to go by
            return torch.full((len(index),), 1e3 * unit, device=index.device)
        points = index[:, 0] if of_points else (values.samples[None] == index[:, :1]).int().argmax(1)
        rows = self._rows(values, values.samples[points], index[:, 1])
        graph = None if self.call.get("final_node_name") else graph_or_none(self.bounded)
        dtype = model_dtype(self.bounded)
        if graph is not None:
            return _SAFETY * first_order(graph, values.points[0][points], rows, dtype, dtype)
        half = tuple(p[: len(values.samples) // 2] for p in values.points)
        spread = traced_spread(self.bounded, half, self.call.get("final_node_name"))
        return rows.abs().sum(1) * spread

    def _rows(self, values: Values, samples: Tensor, specifications: Tensor) -> Tensor:
        c = self.call.get("C")
        if c is None:
            outputs = _flat(values.at).shape[1]
            return torch.nn.functional.one_hot(specifications, outputs).double()
        return c.detach().double().flatten(2)[torch.zeros_like(samples) if len(c) == 1 else samples, specifications]


def graph_or_none(bounded: Any) -> NetworkGraph | None:
    """The graph in float64, where every operator has an adapter."""
    try:
        return build_graph(bounded, torch.float64)
    except Exception:
        return None


def _invalid(bounded: Any, method: Any, reason: str) -> InvalidBoundError:
    remedies = ["use another method"]
    if graph_or_none(bounded) is not None:
        remedies = ['for norm=2 use method="local-lip", which has rules of its own']
    if getattr(bounded, "conv_mode", "") == "patches" and str(method).lower() != "ibp":
        remedies.append('try bound_opts={"conv_mode": "matrix"}')
    return InvalidBoundError(str(method), reason, ", or ".join(remedies))
