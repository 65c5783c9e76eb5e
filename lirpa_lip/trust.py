"""The gate before every bound: the traced graph computes what the model computes, now and at these inputs.

The model's own forward, in its precision, is compared with the graph's value at the centre of the region and at a
random point of it. How far rounding may take the two apart is derived (`lirpa_lip.forward_error`): first by what the
last operation alone can do, which is cheap and in practice enough, then, where that is exceeded, by the errors of all
nodes, carried to the output. What differs by more is another function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .audit import audited
from .errors import ConfigError, LirpaLipError, NonFiniteError, TraceMismatchError, TrainingModeError
from .forward_error import first_order, node_error
from .graph import NetworkGraph
from .live import model_of, refresh

#: First-order errors leave out products of roundoffs, and slopes that change within rounding of a kink.
_BEYOND_FIRST_ORDER = 4.0
#: Most entries of the output whose error is derived in full, the most suspicious first.
_ENTRIES = 32
#: Roundoffs that the value of a traced graph may differ by before more is asked.
_FEW = 32
#: Elements of all nodes' values that may be held at once.
_ELEMENTS = 1 << 26
_TRAINING_DEPENDENT = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Reference:
    """What the model itself says.

    Attributes:
        points: its inputs, each ``(2 · batch, *shape)`` (or ``batch``): the centres, then random points of the region.
        values: its outputs there, ``(same, *output shape)``.
    """

    points: tuple[Tensor, ...]
    values: Tensor


def training_dependent(model: Any) -> list[str]:
    """Names of the model's modules whose output, in the mode they are in, is no function of one input."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    return [name or "model" for name, m in modules if isinstance(m, _TRAINING_DEPENDENT) and m.training]


def current_model(bounded: Any) -> Any:
    """The wrapped model, its tensors put into the graph.

    Raises:
        ConfigError: it is not known, or its tensors do not fit the graph any more.
        TrainingModeError: it is in training mode, where that makes a difference.
    """
    model = model_of(bounded)
    if model is None:
        raise ConfigError("the model behind this module is not known: wrap it after lirpa_lip.register() is called.")
    refresh(bounded)
    for name in training_dependent(model):
        raise TrainingModeError(name, "BatchNorm or Dropout")
    return model


def reference(bounded: Any, points: tuple[Tensor, ...], batch: int) -> Reference:
    """The model's values at ``points``, audited: in one forward pass where it takes them all, else ``batch`` at a time.

    Raises:
        UntraceableError: as `lirpa_lip.audit.audited`.
        ConfigError: the model fails on them.
    """
    model, total = model_of(bounded), len(points[0])
    failed: Exception | None = None
    # a batch size may be written into the model
    for size in dict.fromkeys((total, batch)):
        parts = [tuple(p[i : i + size] for p in points) for i in range(0, total, size)]
        try:
            values = torch.cat([_first(audited(model, part)) for part in parts])
        except LirpaLipError:
            raise
        except Exception as error:
            failed = failed or error
            continue
        if len(values) == total:
            return Reference(points, values)
    why = "its output has no batch axis first" if failed is None else f"{type(failed).__name__}: {failed}"
    raise ConfigError(f"the model's own forward fails on inputs like these: {why}.") from failed


def check_at_wrapping(bounded: Any, inputs: tuple[Tensor, ...], graph: NetworkGraph | None) -> None:
    """Compares the graph with the model at the input it was wrapped with and at a random one of its shape.

    Args:
        graph: in float64, or ``None`` where only auto_LiRPA has all its operators.
    """
    generator = generator_of(bounded)
    sane = all(bool((torch.isfinite(t) & (t.abs() < 1e6)).all()) for t in inputs)  # it may be uninitialised memory
    for at in ([_unit_box(t, generator) for t in inputs], list(inputs) if sane else None):
        if at is None:
            continue
        try:
            if graph is not None:
                check_graph(bounded, graph, at[0], at[0][:0])
            else:
                check_traced(bounded, tuple(at), reference(bounded, tuple(at), len(at[0])))
        except (ConfigError, NonFiniteError):
            pass  # its forward refuses such inputs, or its weights are not finite: calls will tell
    object.__setattr__(bounded, "_passed_the_gate", True)


def _unit_box(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random input like ``x``, of entries in [0, 1]; ``x`` itself where its entries are integers."""
    if not x.is_floating_point():
        return x
    return torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x)


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
    dtype = bounded_dtype(bounded, centre.dtype)
    points = torch.cat([centre.detach(), sample.detach()]).to(dtype)
    found = reference(bounded, (points,), len(centre))
    if not bool(torch.isfinite(found.values).all()):
        raise NonFiniteError("the model's own output", "its values overflow or are undefined at these inputs")
    share = max(1, _ELEMENTS // sum(n.shape.numel() for n in graph))
    for at, expected in zip(points.split(share), found.values.split(share)):
        bad = _excess(graph, at, expected, dtype)
        if bad is not None:
            raise _mismatch(bounded, (at,), *bad)
    return found


def bounded_dtype(bounded: Any, otherwise: torch.dtype) -> torch.dtype:
    """The model's precision."""
    first = next((p for p in bounded.parameters() if p.is_floating_point()), None)
    return otherwise if first is None else first.dtype


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


# ---- graphs of which only auto_LiRPA has the operators ----------------------------------------------------------------


def check_traced(bounded: Any, points: tuple[Tensor, ...], found: Reference, name: str | None = None) -> Tensor:
    """Compares auto_LiRPA's own evaluation of the graph with the model; its value of node ``name``, or of the output.

    Both run the same kernels in the same precision, so that they mostly agree to the last bit. Where they do not, how
    far rounding takes this graph is found by stochastic arithmetic (Vignes, 2004): the graph is evaluated again with
    each node's value changed by random multiples of the roundoff.

    Raises:
        TraceMismatchError: they differ by more.
    """
    output = bounded.output_name[0]
    with traced_values(bounded, points, None, [output, name or output]) as values:
        own, at_node = (values[n].detach() for n in (output, name or output))
    expected = found.values
    if own.numel() != expected.numel():
        raise TraceMismatchError(own.numel(), expected.numel(), 0, reason="They have different numbers of outputs.")
    own, expected = own.reshape(expected.shape).double(), expected.double()
    both = torch.isfinite(own) | torch.isfinite(expected)
    difference = torch.where(both, (own - expected).abs(), 0.0)
    unit = torch.finfo(found.values.dtype).eps if found.values.is_floating_point() else 0.0
    tolerance = torch.full_like(difference, _FEW * unit) * expected.abs()
    if not bool((difference <= tolerance).all()):
        tolerance = tolerance + traced_spread(bounded, points)
        over = ~(difference <= tolerance)
        if bool(over.any()):
            at = tuple(over.nonzero()[0].tolist())
            raise _mismatch(bounded, points, float(own[at]), float(expected[at]), float(tolerance[at]))
    return at_node


def traced_spread(bounded: Any, points: tuple[Tensor, ...], name: str | None = None) -> float:
    """100 times the largest change of any output that random changes of all nodes, by 8 roundoffs, cause."""
    generator = torch.Generator().manual_seed(0)
    name = name or bounded.output_name[0]

    def shaken(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        noise = torch.rand(value.shape, generator=generator, dtype=value.dtype).to(value.device) * 2 - 1
        return value * (1 + 8 * torch.finfo(value.dtype).eps * noise)

    found = []
    for change in (None, shaken):
        with traced_values(bounded, points, change, [name]) as values:
            found.append(values[name].detach().double())
    return 100 * float((found[1] - found[0]).abs().max())


@contextmanager
def traced_values(
    bounded: Any, points: tuple[Tensor, ...], change: Callable[[Tensor], Tensor] | None = None, wanted: Any = None
) -> Iterator[dict[str, Tensor]]:
    """Values of traced nodes at ``points``; afterwards the nodes are as they were, with what a call left on them.

    Args:
        change: applied to each value that depends on the input.
        wanted: names of nodes; all of them by default.
    """
    nodes = dict(bounded._modules)
    before = {name: dict(vars(node)) for name, node in nodes.items()}
    gradients = [(p, p.requires_grad) for p in bounded.parameters() if p.is_leaf]
    values: dict[str, Any] = {}
    try:
        with torch.no_grad():
            for name in nodes if wanted is None else wanted:
                _evaluate(bounded, nodes[name], points, values, change)
        yield values
    finally:
        for name, node in nodes.items():
            vars(node).clear()
            vars(node).update(before[name])
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)


def _evaluate(bounded: Any, node: Any, points: tuple[Tensor, ...], values: dict[str, Any], change: Any) -> Any:
    if node.name not in values:
        index = getattr(node, "input_index", None)
        if type(node).__name__ == "BoundInput" and index is not None:
            values[node.name] = points[index]
        else:
            parts = [_evaluate(bounded, parent, points, values, change) for parent in node.inputs]
            value = node.forward(*parts)
            if isinstance(value, (torch.Size, tuple)):
                value = torch.tensor(value, device=bounded.device)
            node.input_shape = parts[0].shape if parts else None
            node.output_shape = value.shape
            values[node.name] = value if change is None or not parts else change(value)
    return values[node.name]


# ---- where they part --------------------------------------------------------------------------------------------------


def _mismatch(bounded: Any, points: tuple[Tensor, ...], found: float, expected: float, tolerance: float):
    node, reason = "", ""
    try:
        node, reason = _parting(bounded, points)
    except Exception:  # the search must not hide what it explains
        reason = "where they part could not be found."
    if getattr(bounded, "_passed_the_gate", False):
        reason += (
            " When the model was wrapped they agreed: a number or plain tensor that the model holds has changed, a "
            "sub-module was replaced, or its forward depends on more than its input. Wrap the model again; what "
            "changes belongs into parameters or buffers."
        )
    else:
        reason += " An option of this operator is lost in tracing: write it by other operators, or leave it out."
    return TraceMismatchError(found, expected, tolerance, node, reason.strip())


def _parting(bounded: Any, points: tuple[Tensor, ...]) -> tuple[str, str]:
    """The first traced node whose value our nodes, or the model's operators, never take."""
    from .graph import build_graph

    with traced_values(bounded, points) as values:
        traced = {name: v for name, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}
    produced = _produced(model_of(bounded), points)
    order = [n for n in bounded._modules.values() if n.name in traced and n.inputs]
    for node in _topological(order):
        value = traced[node.name]
        if len(value) == len(points[0]) and not any(_same(value, p) for p in produced):
            kind = type(node).__name__
            return f"{node.name!r} ({kind})", f"No operation of the model has the value that {kind} has in the graph."
    graph = build_graph(bounded)
    ours = graph.values(points[0].to(graph.dtype))
    for node in graph:
        value = traced.get(node.name)
        if value is not None and value.numel() == ours[node.name].numel() and not _same(ours[node.name], value):
            return f"{node.name!r} ({node.operator})", f"The rule for {node.operator} does not compute what it does."
    return "", "It computes the model's values otherwise, but not at these inputs."


def _topological(nodes: list) -> list:
    names, order, seen = {n.name for n in nodes}, [], set()

    def visit(node: Any) -> None:
        if node.name in seen:
            return
        seen.add(node.name)
        for parent in node.inputs:
            visit(parent)
        if node.name in names:
            order.append(node)

    for node in nodes:
        visit(node)
    return order


def _produced(model: Any, points: tuple[Tensor, ...]) -> list[Tensor]:
    """Every floating-point value that the model's operators compute on the way."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[Tensor] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            found.extend(t.clone() for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point())
            return result

    with torch.no_grad(), Recorder():
        model(*(p.clone() for p in points))
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel():
        return False
    a, b = a.reshape(-1).double(), b.reshape(-1).double()
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-30) if a.numel() else 1.0
    return bool(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))


# ---- points of a region -----------------------------------------------------------------------------------------------


def region_point(x: Tensor, perturbation: Any, generator: torch.Generator) -> Tensor:
    """A random point of an ``ℓp`` region around each sample of ``x``, within its box; ``x`` where it is no such region."""
    centre = x.detach().as_subclass(Tensor)
    norm, eps = getattr(perturbation, "norm", None), getattr(perturbation, "eps", None)
    if norm is None or not centre.is_floating_point() or norm < 1:
        return centre
    low, high = getattr(perturbation, "x_L", None), getattr(perturbation, "x_U", None)
    draw = torch.rand(centre.shape, generator=generator, dtype=torch.float64).to(centre.device)
    if math.isinf(norm):
        radius = _per_sample(eps, centre)
        start = centre.double() - radius if low is None else low.double().to(centre.device)
        end = centre.double() + radius if high is None else high.double().to(centre.device)
        return (start + draw * (end - start)).to(centre.dtype)
    step = (2 * draw - 1).flatten(1)
    length = step.abs().pow(norm).sum(1).pow(1 / norm).clamp(min=1e-300)
    share = torch.rand(len(centre), generator=generator, dtype=torch.float64).to(centre.device) * 0.5 + 0.49
    step = (step * (share / length).unsqueeze(1)).reshape(centre.shape) * _per_sample(eps, centre)
    point = centre.double() + step
    if low is not None:
        point = torch.maximum(point, low.double().to(point.device))
    if high is not None:
        point = torch.minimum(point, high.double().to(point.device))
    return point.to(centre.dtype)


def _per_sample(eps: Any, centre: Tensor) -> Tensor:
    eps = torch.as_tensor(eps, dtype=torch.float64, device=centre.device).detach()
    return eps.reshape(-1, *[1] * (centre.ndim - 1)) if eps.ndim == 1 else eps


def generator_of(bounded: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """Random points of its own: another seed each call, the same ones each time a program runs."""
    count = getattr(bounded, "_calls", 0)
    object.__setattr__(bounded, "_calls", count + 1)
    return torch.Generator(device).manual_seed(count)


def _first(output: Any) -> Tensor:
    return next(t for t in tree_leaves(output) if isinstance(t, Tensor))
