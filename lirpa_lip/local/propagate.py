"""One pass from the input to the output: pre-activation bounds, slopes and rates of every activation in turn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lirpa_lip.activations.base import SlopeRange
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.checks import check_domain, check_slopes
from lirpa_lip.local.composed import composed_rate
from lirpa_lip.local.deferred import Deferred, can_defer, last_activations
from lirpa_lip.local.layers import Gain, Layer, Layers, box_rate, safe_sqrt, zero_safe_product
from lirpa_lip.local.norm_budget import Norm, norm_below
from lirpa_lip.local.product import (
    layer_gains,
    local_ball,
    local_rows,
    product_norms,
    product_plan,
    product_rate,
    rate_of,
)
from lirpa_lip.local.tighten import composed_interval
from lirpa_lip.network.graph import NetworkGraph, Node
from lirpa_lip.network.intervals import check_interval
from lirpa_lip.network.node import Interval, intersect, node_interval
from lirpa_lip.network.rounding import NodeErrors, positive_slack
from lirpa_lip.regions.region import Region
from lirpa_lip.regions.sizes import safe_norm

#: Share of a layer's reach, and of its values, from which the error of its anchors is worth norms of its own.
_NOTABLE = 1e-7


def planned_norms(graph: NetworkGraph, config: LocalLipConfig, defer: bool = False) -> int:
    """Norms one propagation takes, at most; with those that it leaves for later."""
    count = 0
    for node in graph.activations:
        count += product_plan(graph, node) + (2 if config.bound != "product" else 0)
    # the error of an anchor may take a product's norms, which then the rate takes again
    return count + (sum(product_plan(graph, graph[name]) for name in last_activations(graph)) if defer else 0)


def propagate(
    graph: NetworkGraph,
    region: Region,
    config: LocalLipConfig,
    norm: Norm,
    prior_intervals: Mapping[str, Interval] | None = None,
    *,
    anchored: bool | None = None,
    defer: bool = False,
    intervals_only: bool = False,
) -> Layers:
    """Bounds, slopes and rates of every activation, in topological order.

    Args:
        prior_intervals: valid bounds of some pre-activations from elsewhere (CROWN), intersected with those found here.
        anchored: override of ``config.anchored``.
        defer: leave live rates that nothing here reads for later (``Layers.deferred``).
        intervals_only: rates that no interval depends on are not wanted, and left infinite.
    """
    anchored = config.anchored if anchored is None else anchored
    found = Propagation(graph, region, config, norm, prior_intervals=prior_intervals or {}, anchored=anchored)
    if (defer or intervals_only) and not config.is_estimate:
        found.deferrable, found.rates_of_last = last_activations(graph), not intervals_only
    return found.run()


class Propagation:
    """The state of one pass. Estimates bound nothing, and so count no rounding."""

    def __init__(
        self,
        graph: NetworkGraph,
        region: Region,
        config: LocalLipConfig,
        norm: Norm,
        *,
        prior_intervals: Mapping[str, Interval],
        anchored: bool,
    ) -> None:
        self.graph, self.region, self.config, self.norm = graph, region, config, norm
        self.prior_intervals = prior_intervals
        self.anchored = anchored
        self.values = self._values()
        self.errors = None if config.is_estimate else NodeErrors(graph, self.values)
        self.layers = Layers()
        self.intervals: dict[str, Interval] = {graph.input: region.interval()}
        self.rows: dict[str, dict[str, Tensor]] = {}
        self.tightened = 0
        self.deferrable: set[str] = set()
        self.rates_of_last = True

    def _values(self) -> dict[str, Tensor]:
        return self.graph.values(self.region.centre)

    def run(self) -> Layers:
        wanted = {node.parents[0] for node in self.graph.activations}
        for node in self.graph:
            if node.activation is not None:
                self._activation(node)
            elif not node.is_input:
                self._affine(node, node.name in wanted)
        self.layers.intervals = self.intervals
        if self.errors is not None:
            self.layers.slack = self.errors.slack
        return self.layers

    def _affine(self, node: Node, wanted: bool) -> None:
        slack = None if self.errors is None else self.errors.affine(node, self.intervals)
        interval = node_interval(node, self.intervals, slack, strict=slack is not None)
        if node.name in self.prior_intervals:
            interval = self._both(
                node, "interval arithmetic", interval, "bounds given", self.prior_intervals[node.name]
            )
        if wanted:
            interval = self._narrow(node, interval)
            check_interval(node, interval)
            # a ball seen through a linear map is bounded exactly as it is
            exact = not self.layers and self.region.low is None and self.config.local_ball
            if (self.tightened < self.config.tighten or self.config.tighten == -1) and not exact:
                value, layers = self.values[node.name], self.layers_so_far
                found = composed_interval(self.graph, node, interval, value, layers=layers, region=self.region)
                interval = self._both(node, "earlier bounds", interval, "composed rows", found)
            self.tightened += 1
        self.intervals[node.name] = interval

    @property
    def layers_so_far(self) -> Layers:
        if self.errors is not None:
            self.layers.slack = self.errors.slack
        return self.layers

    def _both(self, node: Node, first: str, a: Interval, second: str, b: Interval) -> Interval:
        # an estimate may well contradict a bound
        return intersect(a, b, None if self.config.is_estimate else (node.name, first, second))

    def _narrow(self, node: Node, interval: Interval) -> Interval:
        if not self.config.local_ball:
            return interval
        value = self.values[node.name]
        rows = self.rows[node.name] = local_rows(self.graph, node.name, self.layers)
        reach = local_ball(self.graph, node.name, self.layers, self.region.eps, rows)
        if self.errors is not None:
            count = max(self.graph[s].shape.numel() for s in rows)
            reach = reach * (1 + positive_slack(count, self.graph.dtype)) + self.errors.chain[node.name]
            # the difference from the centre is rounded as well, by less than what the chain has to spare
        return self._both(node, "interval arithmetic", interval, "the ball", (value - reach, value + reach))

    def _activation(self, node: Node) -> None:
        parent, activation = node.parents[0], node.activation
        assert activation is not None
        anchor = self.values[parent]
        (lower, upper), slopes, whole = self._slopes(node, anchor, self.intervals[parent])
        gains = self._gains(parent, slopes.magnitude)
        open_rate, norms = torch.full_like(self.region.eps, torch.inf), None
        unread = node.name in self.deferrable and not self.rates_of_last
        if self.config.bound != "product" and not unread:
            rate = composed_rate(self.graph, parent, slopes.radius, self.layers, self.norm, gains=gains)
            open_rate = self._outward(rate)
        live_rate, slower = torch.full_like(open_rate, torch.inf), open_rate
        if not unread and not self._defer(node, slopes.magnitude, gains, open_rate):
            live_rate, norms = self._live_rate(node, slopes.magnitude, gains)
            slower = live_rate
            # every diagonal contraction of S^½ z moves no faster, R^½ z among them
            open_rate = torch.minimum(live_rate, open_rate)
        if self.anchored and self.graph.has_products:
            reach = torch.maximum(upper - anchor, anchor - lower)
            live_rate = torch.minimum(live_rate, box_rate(slopes.magnitude, reach, self.region.eps))
            open_rate = torch.minimum(open_rate, box_rate(slopes.radius, reach, self.region.eps))
        error: Tensor | float = 0.0
        if gains is not None:
            self.layers.gains[node.name] = gains
            if self.anchored:
                error = self._anchor_error(node, slopes.magnitude, gains, norms, slower)
        self.layers[node.name] = Layer(
            node.name, parent, activation, lower, upper, anchor, slopes, live_rate, open_rate, error
        )
        after = node_interval(node, {parent: (lower, upper)})
        if self.errors is not None:
            whole = activation.slope_range(lower, upper) if whole is None else whole
            slack = self.errors.activation(node, whole.magnitude, (lower, upper), after)
            after = (after[0] - slack).clamp(min=activation.least), after[1] + slack
        self.intervals[node.name] = after

    def _defer(self, node: Node, mask: Tensor, gains: dict[str, Gain] | None, open_rate: Tensor) -> bool:
        """Leaves a live rate that nothing reads, and that would be no better an open rate, for later."""
        if node.name not in self.deferrable or self.config.bound != "auto":
            return False
        graph, layers = self.graph, Layers(self.layers)
        least = torch.minimum(
            composed_rate(graph, node.parents[0], mask, layers, norm_below),
            product_rate(graph, node, mask, layers, norm_below),
        ).detach()
        if not can_defer(open_rate, least):
            return False
        self.layers.deferred[node.name] = Deferred(least, lambda: self._live_rate(node, mask, gains)[0])
        return True

    def _slopes(self, node: Node, anchor: Tensor, interval: Interval) -> tuple[Interval, SlopeRange, SlopeRange | None]:
        """The interval with the anchor, slopes on it, and the slopes between any two points where they were taken.

        Raises:
            DomainError: the activation is not defined on the interval.
            NonFiniteError: its slopes there overflow (of estimates they are left as they are).
        """
        activation = node.activation
        assert activation is not None
        lower, upper = torch.minimum(interval[0], anchor), torch.maximum(interval[1], anchor)
        check_domain(node, (lower, upper))
        between = activation.slope_range(lower, upper) if not self.anchored else None
        slopes = activation.secant_range(anchor, lower, upper) if between is None else between
        if self.errors is not None:
            check_slopes(node, slopes)
        return (lower, upper), slopes, between

    def _outward(self, rate: Tensor) -> Tensor:
        return rate if self.errors is None else rate * (1 + positive_slack(0, self.graph.dtype))

    @torch.no_grad()
    def _gains(self, parent: str, magnitude: Tensor) -> dict[str, Gain] | None:
        if self.errors is None:
            return None
        rows = self.rows.get(parent) or local_rows(self.graph, parent, self.layers)
        return layer_gains(self.graph, parent, magnitude, rows, self.layers)

    def _live_rate(
        self, node: Node, mask: Tensor, gains: dict[str, Gain] | None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """``Lip(S^½ z)``, and the norms of the product bound where they were taken.

        Of two bounds the second is not taken where it cannot be smaller, or is the same norm.
        """
        graph, layers, config = self.graph, self.layers, self.config
        first = not any(name in layers for name in graph.ancestors(node.parents[0]))
        if config.bound == "product" or (config.bound == "auto" and first and node.isometry_of is None):
            return self._product(node, mask, gains)
        composed = self._outward(composed_rate(graph, node.parents[0], mask, layers, self.norm, gains=gains))
        if config.bound == "composed":
            return composed, None
        # estimates keep warm starts by the order of the norms, which then must not depend on the data
        if not config.is_estimate and bool((composed <= product_rate(graph, node, mask, layers, norm_below)).all()):
            return composed, None
        product, norms = self._product(node, mask, gains)
        return torch.minimum(composed, product), norms

    def _product(self, node: Node, mask: Tensor, gains: dict[str, Gain] | None) -> tuple[Tensor, dict[str, Tensor]]:
        norms = product_norms(self.graph, node, mask, self.layers, self.norm)
        if gains is not None:
            # of an isometry's source the gains are others, but no smaller than for orthogonal maps they can be
            norms = {s: n + (gains[s].gamma * gains[s].size if s in gains else 0.0) for s, n in norms.items()}
        return self._outward(rate_of(norms, self.layers)), norms

    @torch.no_grad()
    def _anchor_error(
        self, node: Node, magnitude: Tensor, gains: Mapping[str, Gain], norms: Mapping[str, Tensor] | None, rate: Tensor
    ) -> Tensor:
        """``‖S^½ (z(centre) − anchor)‖``: its own rounding, and that of its sources times the gains on this layer."""
        parent = node.parents[0]
        assert self.errors is not None
        own = safe_norm((safe_sqrt(magnitude) * self.errors.of_anchor(parent)).flatten(1))
        sources = [s for s in gains if s in self.layers and bool((torch.as_tensor(self.layers[s].error) > 0).any())]

        def total(norms: Mapping[str, Tensor]) -> Tensor:
            parts = [zero_safe_product(torch.minimum(gains[s].norm, norms.get(s, gains[s].norm)), self.layers[s].error)
                     for s in sources]  # fmt: skip
            return self._outward(sum(parts, own))

        usable = norms if norms is not None and node.isometry_of is None else {}
        error = total(usable)
        size = safe_norm((safe_sqrt(magnitude) * self.values[parent]).flatten(1))
        notable = (
            (error > _NOTABLE * zero_safe_product(self.region.eps, rate))
            & (error > _NOTABLE * size)
            & (error > 2 * own)
        )
        if sources and not usable and node.isometry_of is None and bool(notable.any()):
            # Frobenius norms grow too fast in deep networks; these norms were planned for
            error = torch.minimum(error, total(product_norms(self.graph, node, magnitude, self.layers, self.norm)))
        return error
