"""What propagation learns of each activation: bounds, slopes, and how fast its pre-activation can move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.activations.base import Activation, SlopeRange
from lirpa_lip.network.node import Interval
from lirpa_lip.network.rounding import positive_slack
from lirpa_lip.regions.sizes import safe_norm


@dataclass(frozen=True)
class Layer:
    """One activation over one region. With ``z`` its pre-activation, S the largest slope and R half their range:

    Attributes:
        name: of the activation node; ``parent`` of its pre-activation node.
        lower, upper, anchor: bounds of ``z`` and its value at the centre, ``(batch, *shape)``.
        slopes: ranges of slopes, of secants from the centre or of all pairs of points as was asked.
        live_rate: ``Lip(S^½ z)`` of the neurons that are not eliminated, the best known, ``(batch,)``.
        open_rate: ``Lip(R^½ z)`` of the open neurons, the best known, ``(batch,)``.
        error: bound of ``‖S^½ (z(centre) − anchor)‖``, what rounding has done to the anchor; ``(batch,)``.
    """

    name: str
    parent: str
    activation: Activation
    lower: Tensor
    upper: Tensor
    anchor: Tensor
    slopes: SlopeRange
    live_rate: Tensor
    open_rate: Tensor
    error: Tensor | float = 0.0

    def select(self, index: Tensor) -> Layer:
        """The samples at ``index``, alone."""
        slopes = SlopeRange(self.slopes.low[index], self.slopes.high[index])
        names = ("lower", "upper", "anchor", "live_rate", "open_rate")
        error = self.error[index] if isinstance(self.error, Tensor) else self.error
        return replace(self, slopes=slopes, error=error, **{name: getattr(self, name)[index] for name in names})

    @cached_property
    def root(self) -> Tensor | None:
        """``S^½``, ``(batch, *shape)``; None for ones."""
        with torch.enable_grad():  # kept, so that it must not depend on who asks first
            return safe_sqrt(self.slopes.magnitude)

    @cached_property
    def open_root(self) -> Tensor:
        """``R^½``, ``(batch, *shape)``."""
        with torch.enable_grad():
            return safe_sqrt(self.slopes.radius)

    @cached_property
    def centre(self) -> Tensor:
        """C, ``(batch, *shape)``."""
        with torch.enable_grad():
            return self.slopes.centre

    @cached_property
    def is_open(self) -> bool:
        """Whether any neuron of any sample is open."""
        return bool((self.slopes.low < self.slopes.high).any())

    def reach(self, eps: Tensor) -> Tensor:
        """Radius of the ball that ``S^½ (z − anchor)`` stays in, for inputs within ``eps (batch,)``."""
        return zero_safe_product(eps, self.live_rate) + self.error

    def inner_reach(self, eps: Tensor) -> Tensor:
        """Likewise for ``R^½ (z − anchor)``."""
        return zero_safe_product(eps, self.open_rate) + self.error


@dataclass(frozen=True)
class Gain:
    """How strongly one layer's values act on the next one's: of ``S_k^½ A S_j^½``, each ``(batch,)``.

    Attributes:
        norm: upper bound of the spectral norm.
        size: upper bound of the norm of the absolute values.
        gamma: relative error of an entry of A, as computed, beside the absolute values that entered it.
    """

    norm: Tensor
    size: Tensor
    gamma: float


class Layers(dict[str, Layer]):
    """Layers by activation, in topological order.

    Attributes:
        slack: error terms of affine nodes, `lirpa_lip.network.rounding.NodeErrors.slack`; empty for estimates.
        gains: of each layer, by source, for the error of compositions; empty for estimates.
        intervals: bounds of every node's value.
        deferred: live rates not taken yet, by activation; see `lirpa_lip.local.deferred`.
    """

    def __init__(self, layers: Mapping[str, Layer] | None = None) -> None:
        super().__init__(layers or {})
        self.slack: dict[str, Tensor] = {}
        self.gains: dict[str, dict[str, Gain]] = {}
        self.intervals: dict[str, Interval] = {}
        self.deferred: dict[str, Any] = {}

    def select(self, index: Tensor) -> Layers:
        """The samples at ``index``, alone."""
        part = Layers({name: layer.select(index) for name, layer in self.items()})
        part.slack = {name: t[index] if len(t) > 1 else t for name, t in self.slack.items()}
        return part


def zero_safe_product(norm: Tensor, rate: Tensor) -> Tensor:
    """``norm * rate`` with 0 * inf = 0: a map that is zero passes nothing on, however fast its input.

    What underflows is not zero, but at most the least normal number.
    """
    product = norm * rate
    least = torch.finfo(product.dtype).tiny
    lost = (product.detach() < least) & (norm.detach() != 0) & (rate.detach() != 0)
    return torch.where(norm == 0, torch.zeros_like(product), torch.where(lost, product + least, product))


def centres(layers: Layers) -> dict[str, Tensor]:
    """Centre slopes by activation."""
    return {name: layer.centre for name, layer in layers.items()}


def root_magnitudes(layers: Layers, names: Iterable[str]) -> dict[str, Tensor | None]:
    """``S^½`` of the named activations (the input has none)."""
    return {name: layers[name].root for name in names if name in layers}


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root of non-negative numbers with gradient 0 (not infinite) at 0."""
    if not x.requires_grad:
        return x.clamp(min=0).sqrt()
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def box_rate(mask: Tensor, reach: Tensor, eps: Tensor) -> Tensor:
    """``‖S^½ w‖₂ / eps``: a rate from the centre whose ball is no larger than the layer's box, ``(batch,)``.

    Rates grow by a factor at every product, where intervals from elsewhere (composed rows, CROWN) need not.

    Args:
        mask: S, ``(batch, *shape)``.
        reach: how far each neuron's interval lets it move from its anchor, likewise.
        eps: radius of the region, ``(batch,)``; at 0 the rate is infinite.
    """
    size = safe_norm((safe_sqrt(mask) * reach).flatten(1)) * (1 + positive_slack(reach[0].numel(), reach.dtype))
    return torch.where(eps > 0, size / torch.where(eps > 0, eps, 1.0), torch.inf)
