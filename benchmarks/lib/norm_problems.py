"""Layers and masks of the norm benchmarks: three published shapes, random or trained weights, units eliminated."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.networks import SHARED
from lirpa_lip.errors import DataError
from lirpa_lip.norms.linear_map import Conv2dMap, DenseMap, LinearMap
from lirpa_lip.training.data import DataBundle, load_data
from lirpa_lip.training.models import build_model

#: Name -> (input shape, classes, data set or None where none is at hand).
SHAPES: dict[str, tuple[tuple[int, int, int], int, str | None]] = {
    "4c3f": ((1, 28, 28), 10, "mnist"),
    "6c2f": ((3, 32, 32), 10, "cifar10"),
    "8c2f": ((3, 64, 64), 200, None),
}

#: Where each data set lies under the shared folder (the CIFAR-10 there is a lossy JPEG copy).
PLACES = {"mnist": "data", "cifar10": "data/cifar10_jpeg.npz"}

#: Steps and batch of the short training: enough for some 97 % on MNIST, and for a far from random spectrum elsewhere.
TRAINING = {"4c3f": (300, 64), "6c2f": (300, 64)}


@dataclass(frozen=True)
class Layer:
    """A linear layer, and the masks of a batch at its input and output (``None`` for the network's input)."""

    map: LinearMap
    mask_in: Tensor | None
    mask_out: Tensor

    def batch(self, samples: slice) -> Layer:
        return Layer(self.map, None if self.mask_in is None else self.mask_in[samples], self.mask_out[samples])

    @property
    def arguments(self) -> tuple[LinearMap, Tensor | None, Tensor]:
        return self.map, self.mask_in, self.mask_out


def network(name: str, weights: str, seed: int = 0) -> nn.Sequential:
    """``weights`` is ``random`` (the published start) or ``trained`` (a few hundred steps of Adam, kept for next time).

    Raises:
        FileNotFoundError: trained weights were asked for, and the data set is not at hand.
    """
    shape, classes, data = SHAPES[name]
    torch.manual_seed(seed)
    model = build_model(name, shape, classes, activation="relu")
    if weights == "random":
        return model
    if data is None:
        raise FileNotFoundError(f"no data set for {name}")
    kept = Path(tempfile.gettempdir()) / f"lirpa_lip_bench_{name}.pt"
    if not kept.exists():
        _train(model, _data(data).train, *TRAINING[name])
        torch.save(model.state_dict(), kept)
    model.load_state_dict(torch.load(kept))
    return model


def _train(model: nn.Sequential, source, steps: int, batch: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        images, labels = source.batch(torch.randint(len(source), (batch,)))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def images(name: str, count: int) -> Tensor:
    """Test images, or uniform noise where no data set is at hand."""
    shape, _, data = SHAPES[name]
    if data is None:
        return torch.rand(count, *shape)
    return _data(data).test.batch(torch.arange(count))[0]


@cache
def _data(name: str) -> DataBundle:
    try:
        return load_data(name, data_dir=SHARED / PLACES[name])
    except DataError as error:
        raise FileNotFoundError(str(error)) from error


def layers(model: nn.Sequential, shape: tuple[int, ...], count: int, eliminated: float, seed: int = 1) -> list[Layer]:
    """All linear layers but the last, each unit eliminated with the probability given, independently."""
    generator = torch.Generator().manual_seed(seed)

    def mask(z: Tensor) -> Tensor:
        return (torch.rand(z.shape, generator=generator) >= eliminated).float()

    return _walk(model, torch.zeros(count, *shape), mask)


def active_layers(model: nn.Sequential, inputs: Tensor) -> list[Layer]:
    """All linear layers but the last, with the units eliminated that are inactive at the inputs."""
    return _walk(model, inputs, lambda z: (z > 0).float())


@torch.no_grad()
def _walk(model: nn.Sequential, x: Tensor, choose) -> list[Layer]:
    found: list[Layer] = []
    mask: Tensor | None = None
    for module in model:
        shape = x.shape[1:]
        x = module(x)
        if isinstance(module, nn.Flatten):
            mask = None if mask is None else mask.flatten(1)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            linear_map: LinearMap
            if isinstance(module, nn.Conv2d):
                linear_map = Conv2dMap(weight, shape, module.stride, module.padding)
            else:
                linear_map = DenseMap(weight)
            live = choose(x)
            found.append(Layer(linear_map, mask, live))
            mask = live
    return found[:-1]
