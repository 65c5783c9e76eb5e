"""A sequential network as stages (linear map, bias, activation) and 0/1 masks of them, as the published code has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError, UnsupportedOperatorError
from lirpa_lip.losses import ActivationInterval
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin
from lirpa_lip.nn.functional import broadcast_threshold
from lirpa_lip.norms.linear_map import ComposedMap, Conv2dMap, DenseMap, DiagonalMap, LinearMap, ReshapeMap

ONE_LIPSCHITZ = (nn.ReLU, ClippedReLU, MaxMin, ClippedMaxMin, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Sigmoid)
"""Activations that are 1-Lipschitz with respect to ℓ₂ whatever their parameters (Sigmoid is ¼-Lipschitz)."""

_SUPPORTED = ("Linear", "Conv2d", "Flatten", "Normalize", "Identity", "Dropout", *(a.__name__ for a in ONE_LIPSCHITZ))


@dataclass
class Stage:
    """Linear layers up to the next activation, as (layer, input shape), and that activation (None at the end)."""

    layers: list[tuple[nn.Module, torch.Size]] = field(default_factory=list)
    activation: nn.Module | None = None

    def linear_map(self) -> LinearMap:
        """The layers' product on their current weights, differentiable in them."""
        return ComposedMap([_layer_map(layer, shape) for layer, shape in reversed(self.layers)])

    def apply(self, x: Tensor) -> Tensor:
        """The layers' output, biases included, before the activation."""
        for layer, _ in self.layers:
            x = layer(x)
        return x


def stages_of(model: nn.Module, sample: Tensor) -> list[Stage]:
    """Splits a sequential network at its activations.

    Args:
        model: a ``nn.Sequential``, possibly nested, of the supported layers, that ends with a linear layer.
        sample: an input (batch, …); only its shape matters.

    Raises:
        UnsupportedOperatorError: the model is not sequential or holds another layer.
        ConfigError: it does not end with a linear layer.
    """
    stages = [Stage()]
    x = sample[:1].detach().clone()
    for name, layer in _flat_layers(model):
        if isinstance(layer, ONE_LIPSCHITZ):
            stages[-1].activation = layer
            stages.append(Stage())
        elif not isinstance(layer, nn.Identity | nn.Dropout):
            _check_layer(name, layer)
            stages[-1].layers.append((layer, x.shape[1:]))
        with torch.no_grad():
            x = layer(x)
    if not stages[-1].layers or not isinstance(stages[-1].layers[-1][0], nn.Linear):
        raise ConfigError(
            "the bounds of sequential networks need a linear layer at the end, whose rows are the classes."
        )
    if any(not stage.layers for stage in stages):
        raise ConfigError("the network applies two activations in a row; merge them into one module.")
    return stages


def _flat_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Sequential):
        yield prefix or type(model).__name__, model
        return
    for name, child in model.named_children():
        yield from _flat_layers(child, f"{prefix}.{name}" if prefix else name)


def _check_layer(name: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        raise UnsupportedOperatorError(name, "Conv2d", reason=f"padding_mode={layer.padding_mode!r}")
    if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str):
        raise UnsupportedOperatorError(name, "Conv2d", reason=f"padding={layer.padding!r}; give it in numbers")
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.Flatten) and type(layer).__name__ != "Normalize":
        raise UnsupportedOperatorError(name, type(layer).__name__, _SUPPORTED)


def _layer_map(layer: nn.Module, in_shape: torch.Size) -> LinearMap:
    if isinstance(layer, nn.Linear):
        return DenseMap(layer.weight)
    if isinstance(layer, nn.Conv2d):
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
        assert not isinstance(padding, str)
        return Conv2dMap(layer.weight, in_shape, stride, padding, dilation, groups=layer.groups)
    if isinstance(layer, nn.Flatten):
        return ReshapeMap(in_shape, (in_shape.numel(),))
    std = layer.get_buffer("std")
    return DiagonalMap((1.0 / std[0]).expand(in_shape), in_shape)


class Masks(NamedTuple):
    """0/1 masks, the shape of the activation's input: ``rows`` for the map before it, ``columns`` for the map after.

    They differ for clipped MaxMin alone, which moves its entries. None stands for ones.
    """

    rows: Tensor | None
    columns: Tensor | None


def intervals_of(layer: nn.Module, lower: Tensor, upper: Tensor) -> tuple[ActivationInterval, ...]:
    """The elementwise activations a layer consists of, on its input's interval; none where it is never constant."""
    if isinstance(layer, nn.ReLU):
        return (ActivationInterval(lower, upper, 0.0),)
    if isinstance(layer, ClippedReLU):
        return (ActivationInterval(lower, upper, 0.0, broadcast_threshold(layer.threshold, lower)),)
    if isinstance(layer, ClippedMaxMin):
        (lx, ly), (ux, uy) = lower.chunk(2, dim=1), upper.chunk(2, dim=1)
        ceiling = broadcast_threshold(layer.max_threshold, lx)
        floor = broadcast_threshold(layer.min_threshold, lx)
        top = ActivationInterval(torch.maximum(lx, ly), torch.maximum(ux, uy), constant_above=ceiling)
        return top, ActivationInterval(torch.minimum(lx, ly), torch.minimum(ux, uy), constant_below=floor)
    return ()


@torch.no_grad()
def masks_of(layer: nn.Module, lower: Tensor, upper: Tensor) -> Masks:
    """Which entries can vary on the interval.

    A clipped MaxMin whose output is constant removes its column, and the row it comes from where the order of the pair
    is the same on the whole interval; of a pair in unknown order either both rows go or none.
    """
    alive = [interval.varies().to(lower.dtype) for interval in intervals_of(layer, lower, upper)]
    if not alive:
        return Masks(None, None)
    if len(alive) == 1:
        return Masks(alive[0], alive[0])
    top, bottom = alive
    (lx, ly), (ux, uy) = lower.chunk(2, dim=1), upper.chunk(2, dim=1)
    either = torch.maximum(top, bottom)
    x = torch.where(lx >= uy, top, torch.where(ux <= ly, bottom, either))
    y = torch.where(lx >= uy, bottom, torch.where(ux <= ly, top, either))
    return Masks(torch.cat([x, y], dim=1), torch.cat([top, bottom], dim=1))
