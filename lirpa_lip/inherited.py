"""auto_LiRPA's own methods behind the gate: the model's live tensors before, valid numbers after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from auto_LiRPA.utils import unpack_inputs
from torch import Tensor

from .errors import InvalidBoundError, LirpaLipError
from .forward_error import first_order
from .graph import NetworkGraph, build_graph
from .live import model_of, refresh
from .trust import (
    bounded_dtype,
    check_traced,
    generator_of,
    reference,
    region_point,
    traced_spread,
    training_dependent,
)

#: Bounds are computed by more operations than values: their own rounding beside that of the values.
_SAFETY, _FEW = 16.0, 32
#: In a training step this many samples of a batch are checked, another few each time.
_IN_TRAINING = 4
#: Arguments by which a caller restricts or replaces what is bounded, so that a value may lie outside.
_RESTRICTING = ("intermediate_layer_bounds", "interm_bounds", "reference_bounds", "aux_reference_bounds",
                "intermediate_constr", "cutter", "aux")  # fmt: skip


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


def checked_bounds(bounded: Any, inherited: Callable, args: tuple, kwargs: dict, call: dict) -> Any:
    """What ``inherited(*args, **kwargs)`` returns, if it is bounds.

    Raises:
        TraceMismatchError, UntraceableError, ConfigError: the graph is not the model (`lirpa_lip.trust`).
        InvalidBoundError: NaN, a lower bound above the upper one, or a value of the model outside.
    """
    if getattr(bounded, "_inside_a_call", False) or model_of(bounded) is None:
        return inherited(*args, **kwargs)
    refresh(bounded)
    values = _values(bounded, call)
    before = {name: dict(vars(node)) for name, node in bounded._modules.items()}
    object.__setattr__(bounded, "_inside_a_call", True)
    try:
        result = inherited(*args, **kwargs)
    except Exception:
        for name, node in bounded._modules.items():  # a call that failed leaves nothing for the next one to stumble on
            vars(node).clear()
            vars(node).update(before[name])
        raise
    finally:
        object.__setattr__(bounded, "_inside_a_call", False)
    restricted = any(call.get(name) is not None for name in _RESTRICTING)
    _check(bounded, call, result, values, restricted)
    return result


def _values(bounded: Any, call: dict) -> Values | None:
    """Passes the gate; the model's values, or ``None`` where there is no input or no fixed function to ask."""
    if call.get("x") is None or training_dependent(model_of(bounded)) or _training_nodes(bounded):
        return None
    inputs = unpack_inputs(call["x"] if isinstance(call["x"], (tuple, list, dict)) else (call["x"],))
    generator = generator_of(bounded)
    batch = len(inputs[0])
    samples = torch.arange(batch)
    if torch.is_grad_enabled() and batch > 2 * _IN_TRAINING and all(len(t) == batch for t in inputs):
        samples = torch.randperm(batch, generator=generator)[:_IN_TRAINING]
    centre = [t.detach().as_subclass(Tensor)[samples.to(t.device)] for t in inputs]
    sample = [region_point(t, getattr(t, "ptb", None), generator)[samples.to(t.device)] for t in inputs]
    points = tuple(torch.cat(pair) for pair in zip(centre, sample, strict=True))
    found = reference(bounded, points, len(samples))
    at = check_traced(bounded, points, found, call.get("final_node_name"))
    at = at if call.get("final_node_name") else found.values
    return Values(points, torch.cat([samples, samples]).to(at.device), at)


def _training_nodes(bounded: Any) -> bool:
    kinds = ("BoundBatchNormalization", "BoundDropout")
    return any(type(n).__name__ in kinds and n.training for n in bounded._modules.values())


def _check(bounded: Any, call: dict, result: Any, values: Values | None, restricted: bool) -> None:
    method = call.get("method", "backward")
    if not isinstance(result, (tuple, list)) or len(result) < 2:
        return
    lower, upper = (t.detach().flatten(1) if isinstance(t, Tensor) and t.ndim > 1 else None for t in result[:2])
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
        if side is None or side.shape[1] != value.shape[1]:
            continue
        mine = side[values.samples]
        outside = wrong(mine, value)
        if bool(outside.any()):
            allowed.check(outside, mine, value, method, text, of_points=True)


def _specified(at: Tensor, c: Tensor | None, samples: Tensor) -> Tensor:
    at = at.flatten(1)
    if c is None:
        return at
    c = c.detach()
    c = c.expand(int(samples.max()) + 1, *c.shape[1:])[samples] if len(c) == 1 else c[samples]
    return torch.einsum("bso,bo->bs", c.double(), at.double()).to(at.dtype)


class _Allowance:
    """How far rounding may put a value outside its bounds: derived only where one is outside."""

    def __init__(self, bounded: Any, call: dict, values: Values | None) -> None:
        self.bounded, self.call, self.values = bounded, call, values

    def check(self, where: Tensor, found: Tensor, limit: Tensor, method, text: str, of_points: bool = False) -> None:
        unit = torch.finfo(found.dtype).eps
        excess = torch.where(where, (found - limit).abs(), 0.0)
        index = (excess > _FEW * unit * (found.abs() + limit.abs())).nonzero()
        if not len(index):
            return
        order = excess[index[:, 0], index[:, 1]].argsort(descending=True)[:32]
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
        outputs = values.at.flatten(1).shape[1]
        rows = torch.eye(outputs, device=index.device, dtype=torch.float64)[index[:, 1]] if self.call.get("C") is None else (
            _row(self.call["C"], values.samples[points], index[:, 1]))  # fmt: skip
        graph = None if self.call.get("final_node_name") else graph_or_none(self.bounded)
        dtype = bounded_dtype(self.bounded, values.at.dtype)
        if graph is not None:
            return _SAFETY * first_order(graph, values.points[0][points], rows, dtype, dtype)
        spread = traced_spread(self.bounded, values.points, self.call.get("final_node_name"))
        return rows.abs().sum(1) * spread


def _row(c: Tensor, samples: Tensor, specification: Tensor) -> Tensor:
    c = c.detach().double()
    return c[torch.zeros_like(samples) if len(c) == 1 else samples, specification]


def graph_or_none(bounded: Any) -> NetworkGraph | None:
    """The graph in float64, where every operator has an adapter."""
    try:
        return build_graph(bounded).to(torch.float64)
    except Exception:
        return None


def _invalid(bounded: Any, method: Any, reason: str) -> InvalidBoundError:
    remedies = []
    if graph_or_none(bounded) is not None and method != "local-lip":
        remedies.append('use method="local-lip"')
    if getattr(bounded, "conv_mode", "") == "patches" and method not in ("ibp", "IBP"):
        remedies.append('wrap with bound_opts={"conv_mode": "matrix"}')
    remedies.append("use another method" if not remedies else "both for norm=2")
    return InvalidBoundError(str(method), reason, ", or ".join(remedies[: max(1, len(remedies) - 1)]))
