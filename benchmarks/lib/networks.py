"""Networks that others trained (see the benchmark's documentation for where they come from), and their images.

They are not part of the repository: ``LIRPA_LIP_SHARED``, or the folder ``shared`` beside the checkout, holds
``models/`` and ``data/``. Normalisation is part of each network, so radii are in pixels of [0, 1].
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lirpa_lip.training.models import Normalize

SHARED = Path(os.environ.get("LIRPA_LIP_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))

_COMMON = {"mean": (0.485, 0.456, 0.406), "std": (0.225, 0.225, 0.225)}
_RESNET = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}


def cnn_a(channels: int, width: int, features: int) -> nn.Sequential:
    """Two strided convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


class Block(nn.Module):
    """``relu(conv2(relu(conv1(x))) + shortcut(x))``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class ResNet2B(nn.Module):
    """A convolution, two residual blocks and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.linear1, self.linear2 = nn.Linear(1024, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer1(torch.relu(self.conv1(x))).flatten(1)
        return self.linear2(torch.relu(self.linear1(features)))


#: Name -> (constructor, statistics of its normalisation or None, file of images).
GIVEN = {
    "mnist_cnn_a_adv": (lambda: cnn_a(1, 16, 1568), None, "mnist"),
    "cifar_cnn_a_adv": (lambda: cnn_a(3, 16, 2048), _COMMON, "cifar"),
    "cifar_cnn_a_mix": (lambda: cnn_a(3, 16, 2048), _COMMON, "cifar"),
    "cifar_base": (lambda: cnn_a(3, 8, 1024), _COMMON, "cifar"),
    "cifar_resnet2b": (ResNet2B, _RESNET, "cifar"),
}


def load_given(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network ``name`` of ``GIVEN`` in eval mode, and its 200 images ``(n, c, h, w)`` in [0, 1] with labels.

    Raises:
        FileNotFoundError: its files are not there.
    """
    make, statistics, images = GIVEN[name]
    weights = SHARED / "models" / f"{name}.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is not there; set LIRPA_LIP_SHARED to the folder that holds models/.")
    model = make()
    model.load_state_dict(OrderedDict(load_file(weights)))
    if statistics is not None:
        model = nn.Sequential(Normalize(**statistics), model)
    return model.eval(), *load_images(images)


def load_images(name: str) -> tuple[Tensor, Tensor]:
    """The 200 test images of ``"mnist"`` or ``"cifar"``."""
    with np.load(SHARED / "models" / f"{name}_sdp200.npz") as data:
        return torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
