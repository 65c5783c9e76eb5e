"""What a sweep learns of each activation: bounds, slopes, and how fast its pre-activation can move."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lirpa_lip.operators.traits import Activation, SlopeRange


@dataclass(frozen=True)
class Layer:
    """One activation over one region. With ``z`` its pre-activation, S the largest slope and R half their range:

    Attributes:
        name: of the activation node; ``parent`` of its pre-activation node.
        lower, upper, anchor: bounds of ``z`` and its value at the centre, ``(batch, *shape)``.
        slopes: ranges of slopes, of secants from the centre or of all pairs of points as the sweep was asked.
        magnitude: ``Lip(S^½ z)``, the best known, ``(batch,)``.
        spread: ``Lip(R^½ z)``, the best known, ``(batch,)``.
    """

    name: str
    parent: str
    activation: Activation
    lower: Tensor
    upper: Tensor
    anchor: Tensor
    slopes: SlopeRange
    magnitude: Tensor
    spread: Tensor

    def select(self, index: Tensor) -> Layer:
        """The samples at ``index``, alone."""
        slopes = SlopeRange(self.slopes.low[index], self.slopes.high[index])
        names = ("lower", "upper", "anchor", "magnitude", "spread")
        return replace(self, slopes=slopes, **{name: getattr(self, name)[index] for name in names})


Layers = dict[str, Layer]


def centres(layers: Layers) -> dict[str, Tensor]:
    """Centre slopes by activation."""
    return {name: layer.slopes.centre for name, layer in layers.items()}


def root_magnitudes(layers: Layers, names) -> dict[str, Tensor]:
    """``S^½`` of the named activations (the input has none)."""
    return {name: safe_sqrt(layers[name].slopes.magnitude) for name in names if name in layers}


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root of non-negative numbers with gradient 0 (not infinite) at 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
