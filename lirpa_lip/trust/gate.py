"""The gate before every bound: the traced graph computes what the model computes, now and at these inputs.

The model's own forward, in its precision, is compared with the graph's value at the centre of the region and at a
random point of it. How far rounding may take the two apart is derived (`lirpa_lip.network.forward_error`): first by
what the last operation alone can do, which is cheap and in practice enough, then, where that is exceeded, by the errors
of all nodes, carried to the output. What differs by more is another function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, NonFiniteError, TraceMismatchError
from lirpa_lip.network.forward_error import first_order, node_error
from lirpa_lip.network.graph import NetworkGraph, model_dtype
from lirpa_lip.trust.model import Reference, reference
from lirpa_lip.trust.parting import mismatch
from lirpa_lip.trust.points import generator_of, unit_box
from lirpa_lip.trust.traced import traced_in_parts, traced_spread

#: First-order errors leave out products of roundoffs, and slopes that change within rounding of a kink.
_BEYOND_FIRST_ORDER = 4.0
#: Most entries of the output whose error is derived in full, the most suspicious first.
_ENTRIES = 32
#: Roundoffs, of a sample's largest output, that the value of a traced graph may differ by before more is asked.
_FEW = 32
#: Elements of all nodes' values that may be held at once.
_ELEMENTS = 1 << 26


def check_at_wrapping(bounded: Any, inputs: tuple[Tensor, ...], graph: NetworkGraph | None) -> None:
    """Compares the graph with the model at the input it was wrapped with and at a random one of its shape.

    Args:
        graph: in float64, or ``None`` where only auto_LiRPA has all its operators.
    """
    generator = generator_of(bounded)
    sane = all(bool((torch.isfinite(t) & (t.abs() < 1e6)).all()) for t in inputs)  # it may be uninitialised memory
    for at in ([unit_box(t, generator) for t in inputs], list(inputs) if sane else None):
        if at is None:
            continue
        try:
            if graph is not None:
                check_graph(bounded, graph, at[0], at[0][:0])
            else:
                check_traced(bounded, reference(bounded, tuple(at), len(at[0])), len(at[0]))
        except (ConfigError, NonFiniteError):
            pass  # its forward refuses such inputs, or its weights are not finite: calls will tell
        except TraceMismatchError:
            if graph is not None:
                raise
            return  # methods of ours name the operator, and auto_LiRPA's meet the gate when they are called
    object.__setattr__(bounded, "_passed_the_gate", True)


def check_graph(bounded: Any, graph: NetworkGraph, centre: Tensor, sample: Tensor) -> Reference:
    """Compares the graph with the model at both points of every sample.

    Args:
        graph: in the precision of the computation.
        centre, sample: ``(batch, *shape)``, in any precision; they are rounded to the model's.

    Raises:
        TraceMismatchError: they differ by more than rounding.
        NonFiniteError: the model's value is NaN or infinite.
        UntraceableError: the model does, at these inputs, what no trace can carry.
    """
    dtype = model_dtype(bounded)
    points = torch.cat([centre.detach(), sample.detach()]).to(dtype)
    found = reference(bounded, (points,), len(centre))
    if not bool(torch.isfinite(found.values).all()):
        raise NonFiniteError("the model's own output", "its values overflow or are undefined at these inputs")
    share = max(1, _ELEMENTS // sum(n.shape.numel() for n in graph))
    for at, expected in zip(points.split(share), found.values.split(share)):
        bad = _excess(graph, at, expected, dtype)
        if bad is not None:
            raise mismatch(bounded, (at,), *bad)
    return found


@torch.no_grad()
def _excess(graph: NetworkGraph, x: Tensor, expected: Tensor, dtype: torch.dtype) -> tuple[float, float, float] | None:
    """``(graph's, model's, tolerance)`` where they differ too much, or ``None``."""
    values = graph.values(x.to(graph.dtype))
    own, theirs = values[graph.output].flatten(1), expected.to(graph.dtype).flatten(1)
    if own.shape != theirs.shape:
        raise TraceMismatchError(own.shape[1], theirs.shape[1], 0, reason="They have different numbers of outputs.")
    difference = (own - theirs).abs()
    near = {name: (values[name], values[name]) for name in (graph.output, *graph[graph.output].parents)}
    exact = {name: torch.zeros_like(v[0]) for name, v in near.items()}
    last = graph[graph.output]
    tolerance = torch.zeros_like(own) if last.is_input else node_error(last, near, exact, dtype, graph.dtype).flatten(1)
    open_ = ~(difference <= tolerance)
    if not bool(open_.any()):
        return None
    ratio = torch.where(open_, difference / tolerance.clamp(min=1e-300), 0.0)
    ratio = torch.where(torch.isfinite(ratio), ratio, torch.inf)
    worst = ratio.flatten().topk(min(_ENTRIES, int(open_.sum()))).indices
    rows, entries = worst // own.shape[1], worst % own.shape[1]
    one_hot = torch.nn.functional.one_hot(entries, own.shape[1])
    allowed = _BEYOND_FIRST_ORDER * first_order(graph, x[rows], one_hot, dtype, graph.dtype)
    over = ~(difference[rows, entries] <= allowed)
    if not bool(over.any()):
        return None
    first = int(over.nonzero()[0])
    at = rows[first], entries[first]
    return float(own[at]), float(theirs[at]), float(allowed[first])


def check_traced(bounded: Any, found: Reference, batch: int, name: str | None = None) -> Tensor:
    """Compares auto_LiRPA's own evaluation of the graph with the model; its value of node ``name``, or of the output.

    Both run the same kernels in the same precision, so that they mostly agree to the last bit. Where they do not, how
    far rounding takes this graph is found by stochastic arithmetic (Vignes, 2004): the graph is evaluated again with
    each node's value changed by random multiples of the roundoff.

    Args:
        batch: how many points there are of each kind, where a batch size is written into the graph.

    Raises:
        TraceMismatchError: they differ by more.
    """
    points = found.points
    output, expected = bounded.output_name[0], found.values
    own, at_node = traced_in_parts(bounded, points, [output, name or output], batch)
    if own.numel() != expected.numel():
        raise TraceMismatchError(own.numel(), expected.numel(), 0, reason="They have different numbers of outputs.")
    own, expected = own.reshape(expected.shape).double(), expected.double()
    both = torch.isfinite(own) | torch.isfinite(expected)
    difference = torch.where(both, (own - expected).abs(), 0.0)
    unit = torch.finfo(found.values.dtype).eps if found.values.is_floating_point() else 0.0
    largest = expected.abs().flatten(1).amax(1) if expected.ndim > 1 else expected.abs().amax()
    tolerance = _FEW * unit * largest.reshape(-1, *[1] * (expected.ndim - 1)).expand_as(difference)
    if not bool((~both | (difference <= tolerance)).all()):
        tolerance = tolerance + traced_spread(bounded, tuple(p[:batch] for p in points))
        over = both & ~(difference <= tolerance)
        if bool(over.any()):
            at = tuple(over.nonzero()[0].tolist())
            raise mismatch(bounded, points, float(own[at]), float(expected[at]), float(tolerance[at]))
    return at_node
