"""Small networks whose values are multiplied with each other, and their training on scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Added to variances: LayerNorm's and GroupNorm's floor, so that images without contrast have a bound.
FLOOR = 1.0
BATCH, RATE = 64, 3e-3


class VisionTransformer(nn.Module):
    """Patches of 2, two blocks of width 16 with two heads, the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(1, 16, 2, stride=2), nn.Parameter(0.1 * torch.randn(1, 16, 16))
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True, "layer_norm_eps": FLOOR}
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, **options) for _ in range(2)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(tokens).mean(1))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=FLOOR) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(tokens, tokens), nn.ReLU(), nn.Linear(tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class Mixer(nn.Module):
    """Patches of 2, one block of width 16."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Conv2d(1, 16, 2, stride=2), MixerBlock(16, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class GroupNormBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, channels, eps=FLOOR), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class SqueezeExcite(nn.Module):
    """``x`` times a gate for each channel, of the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


class RowReader(nn.Module):
    """An LSTM over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.squeeze(1))[0][:, -1])


def _residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), GroupNormBlock(8), GroupNormBlock(8), nn.Flatten(),
                         nn.Linear(128, 10))  # fmt: skip


def _gated() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), SqueezeExcite(8), nn.Flatten(),
                         nn.Linear(128, 10))  # fmt: skip


#: Name -> (constructor, epochs, weight of the penalty on gradients).
CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "vit": (VisionTransformer, 120, 0.02),
    "mixer": (Mixer, 120, 0.01),
    "resnet-groupnorm": (_residual, 40, 0.02),
    "squeeze-excite": (_gated, 80, 0.01),
    "lstm-rows": (RowReader, 100, 0.01),
}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1437 images for training and 360 for testing, in [0, 1]: ``(x, y, x_test, y_test)``, always the same split."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1437], y[:1437], x[1437:], y[1437:]


def trained(name: str, epochs: int | None = None) -> nn.Module:
    """A classifier after training: cross-entropy, and a penalty on the squared gradient of a random direction."""
    make, usual, penalty = CLASSIFIERS[name]
    torch.manual_seed(0)
    model, (x, y, _, _) = make(), digits()
    epochs = usual if epochs is None else epochs
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, max(steps, 2))
    draws = torch.Generator().manual_seed(1)
    with sdpa_kernel(SDPBackend.MATH):  # the only form of attention that can be differentiated twice
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=draws)
            for batch in order[: len(x) // BATCH * BATCH].split(BATCH):
                loss = _loss(model, _moved(x[batch], draws), y[batch], penalty, draws)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rates.step()
    return model.eval()


def _moved(x: Tensor, draws: torch.Generator) -> Tensor:
    """Noise on all pixels."""
    return x + 0.1 * torch.randn(x.shape, generator=draws)


def _loss(model: nn.Module, x: Tensor, y: Tensor, penalty: float, draws: torch.Generator) -> Tensor:
    x = x.requires_grad_()
    out = model(x)
    direction = F.normalize(torch.randn(out.shape, generator=draws), dim=1)
    (gradient,) = torch.autograd.grad((out * direction).sum(), x, create_graph=True)
    return F.cross_entropy(out, y) + penalty * gradient.flatten(1).square().sum(1).mean()


class ControlLaw(nn.Module):
    """Three Euler steps of ``x₀' = x₁, x₁' = (1 − x₀²) x₁ / 2 − x₀ + u`` under a network's feedback ``u(x)``."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.law, self.steps = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1)), steps

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            place, speed = x[:, :1], x[:, 1:]
            force = 0.5 * (1 - place * place) * speed - place + self.law(x)
            x = x + 0.1 * torch.cat([speed, force], dim=1)
        return x


class Lighting(nn.Module):
    """Contrast and brightness in, a regressor's output for ``x₀ + c x₀ + b`` out."""

    def __init__(self, image: Tensor, regressor: nn.Module) -> None:
        super().__init__()
        self.register_buffer("image", image)
        self.regressor = regressor

    def forward(self, light: Tensor) -> Tensor:
        contrast, brightness = light[:, :1, None, None], light[:, 1:, None, None]
        return self.regressor(self.image + contrast * self.image + brightness)


def regressor(epochs: int = 40) -> nn.Module:
    """A small CNN that reads how far right the ink of an image lies."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2, padding=1),
                          nn.ReLU(), nn.Flatten(), nn.Linear(24, 1))  # fmt: skip
    x = digits()[0]
    target = (x * torch.linspace(-1, 1, 8)).sum((1, 2, 3)) / x.sum((1, 2, 3))
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).split(BATCH):
            loss = F.mse_loss(model(x[batch]).squeeze(1), target[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()
