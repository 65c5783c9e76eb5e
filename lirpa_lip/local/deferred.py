"""Rates that only the product bound of the output reads, taken where an estimate says that it can be the smaller one.

The live rate ``Lip(S^½ z)`` of an activation bounds the intervals of what follows it. Where nothing but the output
follows, it enters the product bound of rows alone; their composed bound does without. On most networks that is the
smaller one by far, which a few steps of an estimate from below show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lirpa_lip.local.layers import Layers
from lirpa_lip.network.graph import NetworkGraph


@dataclass(frozen=True)
class Deferred:
    """A live rate that is not taken yet; in the layer stands infinity.

    Attributes:
        least: ``(batch,)``, an estimate from below. It bounds nothing.
        rate: takes the rate, ``(batch,)``.
    """

    least: Tensor
    rate: Callable[[], Tensor]


def last_activations(graph: NetworkGraph) -> set[str]:
    """Activations that no other one depends on."""
    before = {name for node in graph.activations for name in graph.ancestors(node.parents[0])}
    return {node.name for node in graph.activations} - before


def with_least(layers: Layers) -> Layers:
    """The layers with estimates from below for the rates not taken: what comes of them is no bound."""
    changed = {name: replace(layer, live_rate=layers.deferred[name].least) if name in layers.deferred else layer
               for name, layer in layers.items()}  # fmt: skip
    return Layers(changed)


def settle(layers: Layers) -> None:
    """Takes the rates that are missing."""
    for name, deferred in list(layers.deferred.items()):
        layers[name] = replace(layers[name], live_rate=deferred.rate())
        del layers.deferred[name]


def can_defer(rate: Tensor, least: Tensor) -> bool:
    """Whether a rate that is at least ``least`` improves on no sample's ``rate``."""
    return bool((least >= rate).all()) and bool(torch.isfinite(rate).all())
