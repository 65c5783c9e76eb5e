"""The network with each activation replaced by a line: tangents pushed forward, cotangents pulled back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.norms.linear_map import ComposedMap, IdentityMap, LinearMap, SumMap
from lirpa_lip.norms.maps.compose import scaled_map
from lirpa_lip.norms.powers import exponents, times_power

Slopes = Mapping[str, Tensor]
#: Is shown the complete cotangent of every node on the way, by name.
Visit = Callable[[str, Tensor], None]
#: Chooses the slopes of one activation from its name and the cotangent at its output; ``None`` ends the walk there.
SlopeRule = Callable[[str, Tensor], Tensor | None]


def affine_map(graph: NetworkGraph, source: str, target: str) -> LinearMap:
    """The map from ``source`` (the input or an activation's output) to ``target`` through affine nodes only.

    One composition for each path, and their sum where there are several.
    """
    paths = _paths(graph, source, target)
    composed = [p[0] if len(p) == 1 else ComposedMap(p) for p in paths]
    return composed[0] if len(composed) == 1 else SumMap(composed)


def _paths(graph: NetworkGraph, source: str, target: str) -> list[list[LinearMap]]:
    if source == target:
        return [[IdentityMap(graph[target].shape, graph.dtype, graph.device)]]
    node = graph[target]
    if node.maps is None:
        return []
    paths = []
    for map_, parent in zip(node.maps, node.parents):
        for path in _paths(graph, source, parent):
            rest = [] if parent == source else path
            paths.append([map_, *rest])
    return paths


def pull_back(
    graph: NetworkGraph,
    target: str,
    cotangent: Tensor,
    slopes: Slopes | SlopeRule,
    visit: Visit | None = None,
    *,
    entering: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Cotangents ``(batch, *shape)`` at the input and at every activation's *output*, for one at ``target``.

    An activation with slopes passes its cotangent on, scaled; one without ends the walk there. A rule chooses slopes
    once an activation's cotangent is complete.

    Args:
        entering: cotangents of other nodes before ``target``, which are added to what arrives there.
    """
    rule = slopes if callable(slopes) else (lambda name, value: slopes.get(name))
    pending = {**(entering or {}), target: cotangent}
    collected: dict[str, Tensor] = {}
    for name in reversed(graph.ancestors(target)):
        if name not in pending:
            continue
        node, value = graph[name], pending.pop(name)
        if visit is not None:
            visit(name, value)
        if node.maps is not None:
            for map_, parent in zip(node.maps, node.parents):
                _accumulate(pending, parent, map_.adjoint(value))
            continue
        collected[name] = value
        slope = None if node.activation is None else rule(name, value)
        if slope is not None:
            _accumulate(pending, node.parents[0], slope * value)
    return collected


def push_forward(graph: NetworkGraph, target: str, tangents: Mapping[str, Tensor], slopes: Slopes) -> Tensor:
    """Tangent at ``target`` for tangents injected at the input and at activations' outputs."""
    values: dict[str, Tensor] = {}
    for name in graph.ancestors(target):
        node, total = graph[name], tangents.get(name)
        if node.maps is not None:
            for map_, parent in zip(node.maps, node.parents):
                if parent in values:
                    part = map_.forward(values[parent])
                    total = part if total is None else total + part
        elif node.activation is not None and name in slopes and node.parents[0] in values:
            part = slopes[name] * values[node.parents[0]]
            total = part if total is None else total + part
        if total is not None:
            values[name] = total
    return values[target]


def _accumulate(table: dict[str, Tensor], name: str, value: Tensor) -> None:
    table[name] = table[name] + value if name in table else value


class StackedMap(LinearMap):
    """``(t_j)_j -> diag(out_scale) Σ_j G_{target ← j} diag(scale_j) t_j``: all sources of a target side by side.

    ``G`` is the linearised network. One forward and one adjoint application are one pass through the graph each,
    whatever the number of sources.

    Args:
        graph, target, slopes: the linearised network.
        scales: for each source (the input, activations) a non-negative scale ``(batch, *shape)``.
        out_scale: ``(batch, *target shape)`` or ``None``.
    """

    def __init__(
        self, graph: NetworkGraph, target: str, slopes: Slopes, scales: Mapping[str, Tensor], out_scale: Tensor | None
    ) -> None:
        self.graph, self.target, self.out_scale = graph, target, out_scale
        reached = set(graph.ancestors(target))
        self.slopes = {k: v for k, v in slopes.items() if k in reached}
        self.scales = dict(scales)
        self.sizes = [graph[name].shape.numel() for name in self.scales]
        self.batch_size = next(iter(self.scales.values())).shape[0]
        self.in_shape, self.out_shape = torch.Size([sum(self.sizes)]), graph[target].shape

    @property
    def dtype(self) -> torch.dtype:
        return self.graph.dtype

    @property
    def device(self) -> torch.device:
        return self.graph.device

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.sizes, dim=1)
        return self.combined([part.reshape(-1, *self.graph[name].shape) for name, part in zip(self.scales, parts)])

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([term.flatten(1) for term in self.terms(y)], dim=1)

    def combined(self, parts: Sequence[Tensor]) -> Tensor:
        """`forward` of a tangent for each source, ``(batch, *shape)``."""
        tangents = {name: scale * part for (name, scale), part in zip(self.scales.items(), parts, strict=True)}
        out = push_forward(self.graph, self.target, tangents, self.slopes)
        return out if self.out_scale is None else self.out_scale * out

    def terms(self, y: Tensor) -> list[Tensor]:
        """`adjoint` as one cotangent for each source, ``(batch, *shape)``."""
        y = y if self.out_scale is None else self.out_scale * y
        cotangents = pull_back(self.graph, self.target, y, self.slopes)
        return [scale * cotangents[name] for name, scale in self.scales.items()]

    def rebuild(self, shared: Callable[[Tensor], Tensor], per_sample: Callable[[Tensor], Tensor]) -> StackedMap:
        maps = {n.name: [m.rebuild(shared, shared) for m in n.maps] for n in self.graph if n.maps is not None}
        return self._copy(self._with_maps(maps), per_sample)

    def _with_maps(self, maps: Mapping[str, Sequence[LinearMap]]) -> NetworkGraph:
        nodes = {n.name: replace(n, maps=tuple(maps[n.name])) if n.name in maps else n for n in self.graph}
        return NetworkGraph(nodes, self.graph.input, self.graph.output, self.graph.dtype, self.graph.device)

    def balanced(self) -> tuple[StackedMap, Tensor]:
        """Every node's values in a unit of its own, a power of two: maps, slopes and scales pass from unit to unit."""
        units: dict[str, Tensor] = {}
        maps, slopes, scales = {}, dict(self.slopes), dict(self.scales)
        for name in self.graph.ancestors(self.target):
            node, found = self.graph[name], []
            if name in scales:
                found.append(_size(scales[name]))
            parents = [parent for parent in node.parents if parent in units]
            if node.maps is not None:
                parts = [m.balanced() for m in node.maps]
                found += [units[p] + e for p, (_, e) in zip(node.parents, parts, strict=True) if p in units]
            elif name in slopes and parents:
                found.append(units[parents[0]] + _size(slopes[name]))
            if not found:
                continue
            units[name] = torch.stack(found).amax(0)
            if node.maps is not None:
                maps[name] = [
                    scaled_map(part, units[p] + e - units[name]) if p in units else part
                    for p, (part, e) in zip(node.parents, parts, strict=True)
                ]
            elif name in slopes and parents:
                slopes[name] = times_power(slopes[name], units[parents[0]] - units[name])
            if name in scales:
                scales[name] = times_power(scales[name], -units[name])
        total, out_scale = units[self.target], self.out_scale
        if out_scale is not None:
            total, out_scale = total + _size(out_scale), times_power(out_scale, -_size(out_scale))
        return StackedMap(self._with_maps(maps), self.target, slopes, scales, out_scale), total

    def support(self) -> StackedMap | None:
        maps = {}
        for node in self.graph:
            if node.maps is not None:
                parts = [m.support() for m in node.maps]
                maps[node.name] = [part for part in parts if part is not None]
                if len(maps[node.name]) < len(parts):
                    return None
        return self._copy(self._with_maps(maps), lambda t: (t != 0).to(t.dtype))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> StackedMap:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device or tensor.device, dtype=dtype or tensor.dtype)

        return self._copy(self.graph.to(dtype or self.dtype, device), move)

    def select(self, index: Tensor) -> StackedMap:
        return self._copy(self.graph, lambda t: t[index])

    def _copy(self, graph: NetworkGraph, change: Callable[[Tensor], Tensor]) -> StackedMap:
        out_scale = None if self.out_scale is None else change(self.out_scale)
        slopes = {k: change(v) for k, v in self.slopes.items()}
        return StackedMap(graph, self.target, slopes, {k: change(v) for k, v in self.scales.items()}, out_scale)


def _size(tensor: Tensor) -> Tensor:
    return exponents(tensor.detach().abs().amax())
