"""Networks of rising size with random weights, for what certificates cost: convolutional, residual, with pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lirpa_lip.training.models import build_model

Make = Callable[[], nn.Module]


class ResidualBlock(nn.Module):
    """``relu(bn(conv(relu(bn(conv x)))) + shortcut(x))``, the basic block of He et al. (CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """For 32 × 32 images: no pooling before the blocks; average pooling at the end."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage in range(4):
        outputs = width << stage
        layers += [ResidualBlock(inputs, outputs, 1 if stage == 0 else 2), ResidualBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, 10))


def vgg11(pooling: bool = True) -> nn.Module:
    """For 32 × 32 images, configuration A of Simonyan and Zisserman (ICLR 2015); or strides in the pooling's place."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, halved in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0), (512, 1)):
        stride = 2 if halved and not pooling else 1
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        if halved and pooling:
            layers.append(nn.MaxPool2d(2))
        inputs = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def conv_large() -> nn.Module:
    """Four convolutions and three linear layers, 2.5 million parameters (Mirman et al., ICML 2018)."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, kernel, stride in ((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, 1), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def pooled(pooling: bool = True) -> nn.Module:
    """Two convolutions around overlapping 3 × 3 windows, for 16 × 16 images; or a strided convolution instead."""
    between = nn.MaxPool2d(3, 2, 1) if pooling else nn.Conv2d(8, 8, 3, 2, 1)
    around = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
    layers = (around[0], nn.ReLU(), between, nn.ReLU(), around[1], nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def _published(arch: str, shape: tuple[int, int, int], classes: int = 10) -> Make:
    return lambda: build_model(arch, shape, classes, "relu")


#: Name -> (constructor, shape of an image), from small to large.
NETWORKS: dict[str, tuple[Make, tuple[int, int, int]]] = {
    "small-strided": (lambda: pooled(pooling=False), (3, 16, 16)),
    "small-pooled": (pooled, (3, 16, 16)),
    "4c3f": (_published("4c3f", (1, 28, 28)), (1, 28, 28)),
    "6c2f": (_published("6c2f", (3, 32, 32)), (3, 32, 32)),
    "conv-large": (conv_large, (3, 32, 32)),
    "8c2f": (_published("8c2f", (3, 64, 64), 200), (3, 64, 64)),
    "resnet18-16": (lambda: resnet18(16), (3, 32, 32)),
    "vgg11-strided": (lambda: vgg11(pooling=False), (3, 32, 32)),
    "vgg11": (vgg11, (3, 32, 32)),
    "resnet18-64": (lambda: resnet18(64), (3, 32, 32)),
}


def make_network(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network ``name`` of ``NETWORKS`` in eval mode, and the shape of its images."""
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    return make().eval(), shape
