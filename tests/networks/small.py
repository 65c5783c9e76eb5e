"""Small random networks, and everything a test needs to bound them."""

from __future__ import annotations

import math

import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.local.bounds import prepare
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms, propagate
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin


class Residual(nn.Module):
    """``relu(x + f(x))`` with a residual from the input too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.out = nn.Linear(2 * 25, 3)

    def forward(self, x):
        h = torch.relu(x + self.conv1(x))
        h = torch.relu(h + 0.5 * self.conv2(torch.tanh(h)))
        return self.out(h.flatten(1))


def mlp(activation, sizes=(7, 12, 9, 3)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:])):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers.append(activation(b))
    return nn.Sequential(*layers)


def convolutions(seed: int) -> nn.Sequential:
    """On (1, 8, 8) images, four outputs, float64, weights large enough for many open neurons."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 4)),
    ).double()
    for layer in model:
        if hasattr(layer, "weight"):
            layer.weight.data = torch.randn_like(layer.weight) / math.sqrt(layer.weight[0].numel() / 2)
    return model.eval()


def conv(activation, groups: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        activation((4, 4, 4)),
        nn.Conv2d(4, 6, 3, padding=1, groups=groups),
        activation((6, 4, 4)),
        nn.Flatten(),
        nn.Linear(96, 4),
    )


ACTIVATIONS = {
    "relu": lambda shape: nn.ReLU(),
    "leaky": lambda shape: nn.LeakyReLU(0.2),
    "tanh": lambda shape: nn.Tanh(),
    "sigmoid": lambda shape: nn.Sigmoid(),
    # exactly representable ends: ONNX attributes are float32, so a trace would round others
    "hardtanh": lambda shape: nn.Hardtanh(-0.375, 0.625),
    "clipped_relu": lambda shape: ClippedReLU(shape, threshold=0.4),
}


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Name -> (network with random weights, input shape)."""
    torch.manual_seed(0)
    found = {f"mlp-{name}": (mlp(make), (7,)) for name, make in ACTIVATIONS.items()}
    found["conv-relu"] = (conv(ACTIVATIONS["relu"]), (1, 7, 8))
    found["conv-ungrouped"] = (conv(ACTIVATIONS["relu"], groups=1), (1, 7, 8))
    found["conv-clipped"] = (conv(ACTIVATIONS["clipped_relu"]), (1, 7, 8))
    found["maxmin"] = (mlp(lambda b: MaxMin(), (7, 12, 10, 3)), (7,))
    found["clipped-maxmin"] = (mlp(lambda b: ClippedMaxMin(b, 0.3, -0.2), (7, 12, 10, 3)), (7,))
    found["conv-clipped-maxmin"] = (conv(lambda s: ClippedMaxMin(s, 0.3, -0.2)), (1, 7, 8))
    found["residual"] = (Residual(), (2, 5, 5))
    found["maxpool"] = (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)),
        (1, 6, 6),
    )
    found["one-layer"] = (nn.Sequential(nn.Linear(5, 3)), (5,))
    for net, _ in found.values():
        net.double().eval()
    return found


def wrap(net: nn.Module, shape: tuple[int, ...], batch: int = 3, seed: int = 1, **settings):
    """``(bounded module, x)`` in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, *shape, generator=generator, dtype=torch.float64)
    return BoundedModule(net, x[:1], bound_opts={"local_lip": LocalLipConfig(**settings)}), x


def ball(x: torch.Tensor, eps) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)


def propagated(bounded, x, eps):
    """The graph, its layers around ``x``, and the norms that were taken."""
    config = bounded.bound_opts["local_lip"]
    graph, region, _ = prepare(bounded, ball(x, eps), config)
    norm = NormBudget(config, planned_norms(graph, config))
    with torch.no_grad():
        return graph, propagate(graph, region, config, norm), norm
