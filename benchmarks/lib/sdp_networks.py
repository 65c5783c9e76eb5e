"""The networks of SDP-CROWN's Table 1 (Chiu et al., ICML 2025), for weights that their authors published.

CIFAR inputs are ``(x − (125.3, 123.0, 113.9)/255) / 0.225``, radii in pixels of [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from lirpa_lip.training.models import Normalize

from .networks import cnn_a

_STATISTICS = ([125.3 / 255, 123.0 / 255, 113.9 / 255], [0.225] * 3)


class Published(NamedTuple):
    """A network, its radius, and per cent that are certified and that PGD leaves in the published table."""

    make: Callable[[], nn.Sequential]
    eps: str
    certified: str
    pgd: str


def _mlp() -> nn.Sequential:
    hidden = nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def _unpadded(widths: tuple[int, int], features: int, hidden: tuple[int, ...]) -> nn.Sequential:
    first, second = widths
    layers: list[nn.Module] = [nn.Conv2d(3, first, 4, 2), nn.ReLU(), nn.Conv2d(first, second, 4, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *_dense((features, *hidden, 10)))


def _dense(sizes: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


def _cnn_b() -> nn.Sequential:
    features = nn.Conv2d(3, 32, 5, 2), nn.ReLU(), nn.Conv2d(32, 128, 4, 2, 1), nn.ReLU()
    return nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), *features, nn.Flatten(), *_dense((8192, 250, 10)))


def _convolutions(*shapes: tuple[int, int, int, int]) -> list[nn.Module]:
    return [m for a, b, kernel, stride in shapes for m in (nn.Conv2d(a, b, kernel, stride, 1), nn.ReLU())]


def _deep() -> nn.Sequential:
    features = _convolutions((3, 8, 4, 2), (8, 8, 3, 1), (8, 8, 3, 1), (8, 8, 4, 2))
    return nn.Sequential(*features, nn.Flatten(), *_dense((512, 100, 10)))


def _large(channels: int, features: int) -> nn.Sequential:
    layers = _convolutions((channels, 32, 3, 1), (32, 32, 4, 2), (32, 64, 3, 1), (64, 64, 4, 2))
    return nn.Sequential(*layers, nn.Flatten(), *_dense((features, 512, 512, 10)))


NETWORKS: dict[str, Published] = {
    "sdpcrown_mnist_mlp": Published(_mlp, "1.0", "32.5", "54"),
    "sdpcrown_mnist_convsmall": Published(lambda: cnn_a(1, 16, 1568), "0.3", "81.5", "84.5"),
    "sdpcrown_mnist_convlarge": Published(lambda: _large(1, 3136), "0.3", "79.5", "84"),
    "sdpcrown_cifar_cnn_a": Published(lambda: cnn_a(3, 16, 2048), "24/255", "49", "55.5"),
    "sdpcrown_cifar_cnn_b": Published(_cnn_b, "24/255", "49.5", "59.5"),
    "sdpcrown_cifar_cnn_c": Published(lambda: _unpadded((8, 16), 576, (128, 64)), "24/255", "42.5", "47"),
    "sdpcrown_cifar_convsmall": Published(lambda: _unpadded((16, 32), 1152, (100,)), "24/255", "43.5", "52.5"),
    "sdpcrown_cifar_convdeep": Published(_deep, "24/255", "46", "50.5"),
    "sdpcrown_cifar_convlarge": Published(lambda: _large(3, 4096), "8/255", "63.5", "72.5"),
}


def published_network(name: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network of `NETWORKS` in eval mode with weights named by place (``0.weight``) or by layer (``conv1.weight``).

    Layers are taken in order: convolutions before dense ones, by their numbers.
    """
    body = NETWORKS[name].make()
    layers = sorted({key.rpartition(".")[0] for key in weights}, key=_place)
    own = [key.rpartition(".")[0] for key in body.state_dict() if key.endswith(".weight")]
    if len(layers) != len(own):
        raise ValueError(f"{name} has {len(own)} layers with weights, the file {len(layers)}.")
    named = {f"{b}.{kind}": weights[f"{a}.{kind}"] for a, b in zip(layers, own) for kind in ("weight", "bias")}
    body.load_state_dict(named)
    return (body if "mnist" in name else nn.Sequential(Normalize(*_STATISTICS), body)).eval()


def _place(layer: str) -> tuple[bool, int]:
    number = re.search(r"\d+", layer)
    return "fc" in layer or "linear" in layer, int(number.group()) if number else 0
