"""A sequential network as stages: linear map, bias, activation; the form in which the global bound reads it.

Other networks go through ``lirpa_lip.BoundedModule`` (the bounds ``local-product`` and ``local-lip``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError, UnsupportedOperatorError
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin
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
        reason = (
            "the bound 'global-product' reads sequential networks; 'local-product' and 'local-lip' take general graphs"
        )
        raise UnsupportedOperatorError(name, type(layer).__name__, _SUPPORTED, reason)


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
