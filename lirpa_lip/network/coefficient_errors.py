"""The rounding of CROWN's bounds from the coefficients that CROWN had: sums, where absolute weights would multiply up.

A row's error is at most ``Σ_k |A_k| t_k`` over the nodes a backward pass goes through, A_k the row's coefficients at
node k as auto_LiRPA computed them and t_k what one step backward from there rounds. The terms t are those of
`linear_bound_errors`, from the nearest nodes before k whose coefficients are seen; what lies between (the squares of a
product, the tournament of a softmax) is counted by its absolute weights. Intervals that the pass computes on its way
are widened by their own error before a line rests on them, so that no error of an interval meets the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.linear_bound_errors import LinearBoundErrors, largest, sum_gamma
from lirpa_lip.network.node import Interval


class CoefficientErrors:
    """Watches a CROWN pass over a graph, in `watching`, and adds up what it may have rounded.

    Attributes:
        errors: of the intervals on the nodes, ``(batch, *shape)``; 0 where the pass has widened them.
        rows: of the rows asked for, ``(batch, specs)``.
        complete: whether every coefficient could be read; convolution patches and Python-only forms cannot.
    """

    def __init__(self, bounded: Any, graph: NetworkGraph, box: Interval, used: Mapping[str, Interval]) -> None:
        self.bounded = bounded
        self.taken = {name: _inflated(interval) for name, interval in used.items()}
        self.terms = LinearBoundErrors(graph, box, self.taken)
        self.graph = self.terms.graph
        self.seen = {n.name for n in self.graph if n.name in bounded._modules}
        self.errors: dict[str, Tensor] = {graph.input: self.terms.of_input}
        self.rows: Tensor | None = None
        self.complete = True
        self._charges: dict[str, Tensor] = {}
        self._total: Tensor | None = None

    def holds(self, used: Mapping[str, Interval]) -> bool:
        """Whether what was added up is a bound: all was read, on intervals no wider than the terms are for."""
        inside = (
            name in self.taken and bool(((low >= self.taken[name][0]) & (high <= self.taken[name][1])).all())
            for name, (low, high) in used.items()
        )
        return self.complete and self.rows is not None and all(inside)

    def hull(self, used: Mapping[str, Interval]) -> dict[str, Interval]:
        """Intervals that hold those the terms were for and these."""
        return {
            name: tuple(t.detach() for t in (torch.minimum(low, taken[0]), torch.maximum(high, taken[1])))
            for name, (low, high) in used.items()
            for taken in (self.taken.get(name, (low, high)),)
        }  # type: ignore[return-value]

    # ---- terms of nodes -------------------------------------------------------------------------------------------
    def _between(self, name: str) -> list[str]:
        """The node and those before it up to the nearest that are seen, in topological order."""
        found, pending = {name}, list(self.graph[name].parents)
        while pending:
            parent = pending.pop()
            if parent not in self.seen and parent not in found:
                found.add(parent)
                pending.extend(self.graph[parent].parents)
        return [n.name for n in self.graph if n.name in found]

    def _carried(self, name: str, exact: bool) -> Tensor:
        between = self._between(name)
        values: dict[str, Tensor] = {}
        for inner in between:
            node = self.graph[inner]
            for parent in node.parents:
                if parent not in values:
                    known = self.interval_error(parent)
                    values[parent] = torch.zeros_like(known) if exact else known
            values[inner] = self.terms.step(node, values)
        return values[name]

    def interval_error(self, name: str) -> Tensor:
        """How far the interval that CROWN has of a node may be from one that holds."""
        if name not in self.errors:
            self.errors[name] = self._carried(name, exact=False)
        return self.errors[name]

    def _charge(self, name: str) -> Tensor:
        if name not in self._charges:
            lines = any(self.graph[n].activation is not None for n in self._between(name))
            self._charges[name] = self._carried(name, exact=not lines)
        return self._charges[name]

    # ---- the pass -------------------------------------------------------------------------------------------------
    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the backward passes of the module inside. Intervals are all computed, none left to interval
        arithmetic."""
        module = self.bounded
        sparse = module.bound_opts.get("sparse_intermediate_bounds")
        nodes = {name: module._modules[name] for name in self.seen if not self.graph[name].is_input}
        module.bound_opts["sparse_intermediate_bounds"] = False
        module.__dict__["backward_general"] = self._pass(module.backward_general)
        for name, node in nodes.items():
            node.__dict__["bound_backward"] = self._step(name, node.bound_backward)
        try:
            yield
        finally:
            module.bound_opts["sparse_intermediate_bounds"] = sparse
            module.__dict__.pop("backward_general", None)
            for node in nodes.values():
                node.__dict__.pop("bound_backward", None)

    def _pass(self, original: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = kwargs.get("bound_node", kwargs.get("node"))
            start = next(a for a in args if hasattr(a, "lower") or hasattr(a, "inputs")) if start is None else start
            before, self._total = self._total, None
            found = original(*args, **kwargs)
            total, self._total = self._total, before
            if total is None or start.name not in self.graph.nodes:
                return found
            return self._noted(start.name, total, found, kwargs.get("unstable_idx"))

        return run

    def _noted(self, name: str, total: Tensor, found: Any, chosen: Any) -> Any:
        rows = torch.nan_to_num(total.transpose(0, 1) * (1 + 1e-6), nan=torch.inf)  # (batch, specs)
        if name == self.graph.output:
            self.rows = rows
            return found
        lower, upper, *others = found
        if chosen is not None or lower is None or upper is None or lower.numel() != rows.numel():
            self.complete = False
            return found
        error = rows.reshape(lower.shape)
        self.errors[name] = torch.zeros_like(lower)
        below = lower - error
        below = torch.where((lower >= 0) & self._not_negative(name), below.clamp(min=0), below)
        return (_below(below), -_below(-(upper + error)), *others)

    def _not_negative(self, name: str) -> bool:
        """Whether a node's values are squares, sums of these, and the like."""
        node = self.graph[name]
        if node.activation is not None:
            return node.activation.least >= 0
        least = [self.terms.intervals[p][0].min() for p in node.parents]
        return (
            all(m.nonnegative for m in node.maps or ())
            and all(float(low) >= 0 for low in least)
            and (node.bias is None or float(node.bias.min()) >= 0)
        )

    def _step(self, name: str, original: Callable) -> Callable:
        def step(lower: Any, upper: Any, *inputs: Any, **kwargs: Any) -> Any:
            found = original(lower, upper, *inputs, **kwargs)
            with torch.no_grad():
                self._add(self._charge(name), lower, upper)
                for node, pair in zip(inputs, found[0]):
                    # sums of what several readers hand to a node
                    if getattr(node, "name", None) in self.seen:
                        size = largest(self.terms.intervals[node.name]) + self.interval_error(node.name)
                        self._add(sum_gamma(self.terms.nodes) * size, *pair)
            return found

        return step

    def _add(self, term: Tensor, *coefficients: Any) -> None:
        """Adds ``|A| term``, A the larger of a lower and an upper bound's coefficients, ``(specs, batch, *shape)``."""
        given = [a for a in coefficients if a is not None]
        if not given or not self.complete:
            return
        if all(isinstance(a, Tensor) for a in given):
            size = given[0].abs() if len(given) == 1 else torch.maximum(given[0].abs(), given[1].abs())
            if size[0, 0].numel() != term[0].numel():
                self.complete = False
                return
            # 0 · inf is 0: what no coefficient meets takes nothing from the row
            product = torch.where(size.flatten(2) == 0, 0.0, size.flatten(2) * term.flatten(1))
            added = product.sum(2)
        elif type(given[0]).__name__ == "eyeC":
            added = term.flatten(1).transpose(0, 1)
        elif type(given[0]).__name__ == "OneHotC" and given[0].coeffs is None and given[0].index.ndim == 1:
            added = term.flatten(1).transpose(0, 1)[given[0].index]
        else:
            self.complete = False
            return
        self._total = added if self._total is None else self._total + added


def _inflated(interval: Interval) -> Interval:
    """Room for what a pass widens its intervals by; what is positive stays so, for its root and its logarithm."""
    low, high = interval
    room = 1e-5 * torch.maximum(low.abs(), high.abs()).flatten(1).amax(1).reshape(-1, *[1] * (low.ndim - 1)) + 1e-12
    below = low - room if bool((low < 0).any()) else torch.maximum(low - room, low * (1 - 1e-3))
    return below, high + room


def _below(x: Tensor) -> Tensor:
    """The next number below; of −∞, which an error without a bound makes, itself (`precision.next_below` has NaN)."""
    return torch.nextafter(x, torch.full_like(x, -torch.inf))
