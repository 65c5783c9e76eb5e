"""Random models: chains of random layers with shortcuts and layers that are used twice."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from .layers import Shape, layers_for

_PATIENCE = 200  # draws in a row that do not fit: some shapes take no further layer
_MOST = 400  # most numbers in one value, so that a case takes a fraction of a second


class RandomModel(nn.Module):
    """Layers in turn; ``shortcuts[i] = j`` adds the value before layer j to that after layer i."""

    def __init__(self, layers: list[nn.Module], shortcuts: dict[int, int]) -> None:
        super().__init__()
        self.layers, self.shortcuts = nn.ModuleList(layers), shortcuts

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for index, layer in enumerate(self.layers):
            value = layer(values[-1])
            if index in self.shortcuts:
                value = value + values[self.shortcuts[index]]
            values.append(value)
        return values[-1]


def random_shape(rng: random.Random) -> Shape:
    """Of one input: flat, a signal, or an image, square more often than oblong."""
    kind = rng.random()
    if kind < 0.45:
        return (rng.randint(1, 6),)
    if kind < 0.55:
        return (rng.randint(1, 2), rng.randint(3, 6))
    side = rng.randint(2, 5)
    return (rng.randint(1, 4), side, side if rng.random() < 0.75 else rng.randint(2, 5))


def random_model(rng: random.Random, shape: Shape | None = None, depth: int | None = None) -> tuple[RandomModel, Shape]:
    """A model in eval mode and the shape of one input; the same for the same random source."""
    torch.manual_seed(rng.randrange(2**31))
    shape = shape or random_shape(rng)
    depth = depth or rng.randint(1, 6)
    layers: list[nn.Module] = []
    shortcuts: dict[int, int] = {}
    value = torch.zeros(2, *shape)
    values, last_kind, refused = [value], "", 0
    while len(layers) < depth and refused < _PATIENCE:
        table = layers_for(tuple(value.shape[1:]))
        kind = rng.choices(list(table), [weight for _, weight in table.values()])[0]
        refused += 1
        if kind == last_kind == "activation":
            continue
        reused = layers and rng.random() < 0.05
        layer = rng.choice(layers) if reused else table[kind][0](rng, tuple(value.shape[1:]))
        found = None if layer is None else _applied(layer, value)
        if found is None:
            continue
        last_kind, refused = kind, 0
        layers.append(layer)
        same = [i for i, v in enumerate(values) if v.shape == found.shape]
        if same and rng.random() < 0.2:
            shortcuts[len(layers) - 1] = rng.choice(same)
        value = found
        values.append(value)
        if value.ndim > 2 and len(layers) >= depth - 1 and rng.random() < 0.8:
            layers.append(nn.Flatten())
            values.append(layers[-1](value))
            layers.append(nn.Linear(values[-1].shape[1], rng.randint(1, 4)))
            values.append(layers[-1](values[-1]))
            break
    model = RandomModel(layers, shortcuts).eval()
    _settle(model, rng)
    return model, shape


def _applied(layer: nn.Module, value: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            found = layer.eval()(value)
    except (RuntimeError, IndexError):  # a layer used again that does not fit here
        return None
    fits = 2 <= found.ndim <= 4 and found.shape[0] == 2 and 0 < found[0].numel() <= _MOST
    return found if fits and min(found.shape) > 0 else None


def _settle(model: nn.Module, rng: random.Random) -> None:
    """Batch norm with statistics of its own, and some weights that are zero."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2)
            nn.init.uniform_(module.weight, -1, 1)
        if isinstance(module, nn.Linear) and rng.random() < 0.1:
            module.weight.data[torch.rand_like(module.weight) < 0.5] = 0
