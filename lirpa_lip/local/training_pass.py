"""The pass of `lirpa_lip.local.propagate` for training: its norms are estimates, and it leaves out what costs a pass.

What is left out makes bounds larger, never invalid:

* pre-activations are narrowed by the ball with rows of the bare weights, times the largest ``S^½`` of the layer before,
  and at the affine map itself, not behind the rotation of a pairwise sort;
* a sort's own rule gives its values, without a walk through its nodes; nothing is computed that no one reads;
* live rates are products; compositions bound them too at the last activations, where they enter every pair of classes;
* the fold inside a clipped sort, which the product bound looks through, has no live rate (it is infinite).

``S^½`` is held in the gradient, as masks are. Intervals and slopes have gradients if asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, SlopeRange
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.checks import check_domain
from lirpa_lip.local.composed import composed_rate
from lirpa_lip.local.layers import Layer, Layers, zero_safe_product
from lirpa_lip.local.norm_budget import JointNorm
from lirpa_lip.local.product import local_rows, masked_norms, rate_of
from lirpa_lip.local.propagate import Propagation
from lirpa_lip.network.graph import NetworkGraph, Node
from lirpa_lip.network.node import Interval, affine_value, node_interval, own_interval
from lirpa_lip.regions.region import Region


def training_pass(
    graph: NetworkGraph, region: Region, config: LocalLipConfig, norm: JointNorm, interval_gradients: bool = True
) -> tuple[Layers, Mapping[str, Tensor]]:
    """Layers as of `propagate`, each a `HeldLayer`, and the values at the centre, found as they are read.

    Args:
        config: of an estimate; its ``image_box`` is the region's.
        norm: estimates, in a fixed order of calls.
        interval_gradients: whether intervals, and the slopes made of them, carry gradients.
    """
    found = _TrainingPass(graph, region, config, norm, interval_gradients)
    return found.run(), found.values


def feature_node(graph: NetworkGraph) -> tuple[str, str] | None:
    """What the logits are a linear function of: a node, and the one source it is, but for turns that keep norms.

    A pairwise sort before the last layer is such a turn, and has tight intervals of its own. None where the output
    depends on several sources, or on the input alone.
    """
    output = graph[graph.output]
    sources = graph.sources(graph.output)
    if len(sources) != 1 or graph[sources[0]].activation is None:
        return None
    node = graph[output.parents[0]] if output.maps is not None and len(output.maps) == 1 else graph[sources[0]]
    found = node.name
    while node.maps is not None:
        if len(node.maps) > 1 or not node.maps[0].orthogonal or node.bias is not None:
            return sources[0], sources[0]
        node = graph[node.parents[0]]
    return found, sources[0]


@dataclass(frozen=True)
class HeldLayer(Layer):
    """A layer whose ``S^½`` is known, and held in the gradient; None where it is one on every interval."""

    held: Tensor | None = None

    @cached_property
    def root(self) -> Tensor | None:
        return self.held

    @cached_property
    def peak(self) -> Tensor | float:
        """Largest ``S^½`` of each sample, ``(batch,)``: how much further values can get than pre-activations."""
        return 1.0 if self.held is None else self.held.flatten(1).amax(1)


class _Values(dict[str, Tensor]):
    """Values at the centre, computed when they are first read: with gradients, whoever reads them first."""

    def __init__(self, graph: NetworkGraph, x: Tensor) -> None:
        super().__init__({graph.input: x})
        self.graph, self.gradients = graph, torch.is_grad_enabled()

    def __missing__(self, name: str) -> Tensor:
        node = self.graph[name]
        with torch.set_grad_enabled(self.gradients):
            if node.activation is not None:
                self[name] = node.activation.value(self[node.parents[0]])
            else:
                self[name] = affine_value(node, self)
        return self[name]


class _TrainingPass(Propagation):
    def __init__(
        self, graph: NetworkGraph, region: Region, config: LocalLipConfig, norm: JointNorm, gradients: bool
    ) -> None:
        super().__init__(graph, region, config, norm, prior_intervals={}, anchored=config.anchored)
        self.gradients = gradients
        self.heads = set(graph.sources(graph.output))
        self.inner_folds = {node.isometry_of.fold for node in graph.activations if node.isometry_of is not None}
        self.narrowed = {_before_turning(graph, node.parents[0]) for node in graph.activations}
        self.read = self._read_intervals()
        self.roots: dict[str, Tensor | None] = {}

    def _values(self) -> dict[str, Tensor]:
        return _Values(self.graph, self.region.centre)

    def _read_intervals(self) -> set[str]:
        """Nodes whose intervals are asked for: by activations, by what these pre-activations depend on, at the head."""
        features = feature_node(self.graph)
        read = set() if features is None else {features[0]}
        for node in reversed(list(self.graph)):
            if node.activation is not None:
                if not self._is_known(node, read):
                    read.add(node.parents[0])
            elif node.name in read:
                read.update(node.parents if node.shortcut is None else (node.shortcut[0],))
        return read

    def _is_known(self, node: Node, read: set[str]) -> bool:
        """Whether all that is asked of an activation is how large its slopes are, and that is 1."""
        assert node.activation is not None
        known = self.config.bound == "product" and node.activation.steep
        return known and node.name not in self.inner_folds and node.name not in read

    def _affine(self, node: Node, wanted: bool) -> None:
        if node.name in self.read:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.gradients):
                self.intervals[node.name] = self._interval(node)

    def _interval(self, node: Node) -> Interval:
        if node.name not in self.narrowed or node.shortcut is not None:
            if node.maps is not None and len(node.maps) == 1 and node.bias is None and node.shortcut is None:
                return node.maps[0].interval(*self.intervals[node.parents[0]])
            return own_interval(node, self.intervals)
        value = self.values[node.name]
        reach: Tensor | float = 0.0
        for source, rows in local_rows(self.graph, node.name, self.layers, masked=False).items():
            reach = reach + rows * self._radius(source).reshape(-1, *[1] * len(node.shape))
        low, high = value - reach, value + reach
        if not self.layers and self.region.low is None:
            return low, high  # on the bare ball: ‖row‖₂ <= ‖row‖₁
        least, most = node_interval(node, self.intervals)
        return torch.maximum(low, least), torch.minimum(high, most)

    def _radius(self, source: str) -> Tensor:
        """How far the values of a source can move together, ``(batch,)``."""
        layer = self.layers.get(source)
        if layer is None:
            return self.region.eps
        assert isinstance(layer, HeldLayer)
        return zero_safe_product(torch.as_tensor(layer.peak).to(layer.live_rate), self.region.eps * layer.live_rate)

    def _slopes(self, node: Node, anchor: Tensor, interval: Interval) -> tuple[Interval, SlopeRange, SlopeRange | None]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.gradients):
            return super()._slopes(node, anchor, interval)

    def _slopes_and_root(
        self, node: Node, activation: Activation, anchor: Tensor
    ) -> tuple[Interval, SlopeRange, Tensor | None]:
        """The interval, slopes on it, and ``S^½``; of a product bound the steepest slope alone is wanted."""
        interval = self.intervals[node.parents[0]]
        if self.config.bound != "product" or not self.anchored or node.name in self.inner_folds:
            interval, slopes, _ = self._slopes(node, anchor, interval)
            with torch.no_grad():
                return interval, slopes, None if activation.steep else slopes.magnitude.sqrt()
        check_domain(node, interval)
        with torch.no_grad():
            steepest = activation.steepest_secant(anchor, *interval)
            return interval, SlopeRange(-steepest, steepest), steepest.sqrt()

    def _activation(self, node: Node) -> None:
        parent, activation = node.parents[0], node.activation
        assert activation is not None
        if self._is_known(node, self.read):
            self._known(node, activation)
            return
        anchor = self.values[parent]
        interval, slopes, root = self._slopes_and_root(node, activation, anchor)
        live_rate = self._product_rate(node, root, len(anchor))
        open_rate = live_rate
        if self.config.bound != "product":
            composed = composed_rate(self.graph, parent, slopes.radius, self.layers, self.norm)
            open_rate = torch.minimum(live_rate, composed)
            if node.name in self.heads:
                magnitude = None if activation.steep else slopes.magnitude
                live_rate = torch.minimum(
                    live_rate, composed_rate(self.graph, parent, magnitude, self.layers, self.norm)
                )
        layer = HeldLayer(
            node.name, parent, activation, *interval, anchor, slopes, live_rate, open_rate, held=root
        )  # fmt: skip
        self.layers[node.name] = layer
        if node.name in self.read:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.gradients):
                self.intervals[node.name] = activation.interval(*interval)

    def _known(self, node: Node, activation: Activation) -> None:
        """A layer whose interval no one reads: of any size, around any anchor."""
        batch = len(self.region.eps)
        zero = torch.zeros((), dtype=self.graph.dtype, device=self.graph.device).expand(batch, *node.shape)
        slopes, rate = SlopeRange(zero - 1, zero + 1), self._product_rate(node, None, batch)
        infinite = torch.full_like(zero[:1], torch.inf).expand_as(zero)
        self.layers[node.name] = HeldLayer(
            node.name, node.parents[0], activation, -infinite, infinite, zero, slopes, rate, rate
        )  # fmt: skip

    def _product_rate(self, node: Node, root: Tensor | None, batch: int) -> Tensor:
        if node.name in self.inner_folds:
            return torch.full((batch,), torch.inf, dtype=self.graph.dtype, device=self.graph.device)
        norms = masked_norms(self.graph, node, root, self.layers, self.norm)
        return rate_of(norms, self.layers).expand(batch)


def _before_turning(graph: NetworkGraph, name: str) -> str:
    """The node itself, or what it rearranges or rotates: there rows are plain rows of weights."""
    node = graph[name]
    while node.maps is not None and len(node.maps) == 1 and node.maps[0].structural and not node.is_input:
        if graph[node.parents[0]].maps is None:
            break
        node = graph[node.parents[0]]
    return node.name
