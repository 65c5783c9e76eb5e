"""Single random layers: for a sample's shape, a module (or a function as one) and nothing else.

Every maker takes the random source and the shape of one sample, and returns a module, or ``None`` where it does not
fit.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin

Shape = tuple[int, ...]
Maker = Callable[[random.Random, Shape], nn.Module | None]


class Call(nn.Module):
    """A function, with the tensors it reads as parameters or buffers of the module."""

    def __init__(self, fn: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.fn, self.names = fn, tuple(tensors)
        for index, (name, value) in enumerate(tensors.items()):
            if index % 2:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, *(getattr(self, name) for name in self.names))


# ---- on images (channels, height, width)
def convolution(rng: random.Random, shape: Shape) -> nn.Module | None:
    """Groups, dilation, stride, padding (also ``"same"``), square and oblong kernels."""
    channels, height, width = shape
    groups = rng.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    out = groups * rng.randint(1, 2)
    square = rng.random() < 0.7
    kernel = (k := rng.randint(1, 3), k if square else rng.randint(1, 3))
    dilation = (d := rng.choice([1, 1, 2]), d if square else rng.choice([1, 2]))
    stride = (s := rng.choice([1, 1, 2]), s if square else rng.choice([1, 2]))
    padding: object = (p := rng.randint(0, 2), p if square else rng.randint(0, 2))
    if stride == (1, 1) and rng.random() < 0.2:
        padding = "same"
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    room = (0, 0) if padding == "same" else padding
    if padding != "same" and any(n + 2 * p < r for n, p, r in zip((height, width), room, reach)):
        return None
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.8)


def transposed(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels, height, width = shape
    if height * width > 40:
        return None
    groups = rng.choice([g for g in (1, 1, 2) if channels % g == 0])
    stride, kernel = rng.choice([1, 2]), rng.randint(1, 3)
    padding = rng.randint(0, min(1, kernel - 1))
    extra = rng.randint(0, stride - 1)
    out = groups * rng.randint(1, 2)
    if (min(height, width) - 1) * stride - 2 * padding + kernel + extra < 1:
        return None
    return nn.ConvTranspose2d(channels, out, kernel, stride, padding, extra, groups)


def pool(rng: random.Random, shape: Shape) -> nn.Module | None:
    _, height, width = shape
    kernel = rng.randint(2, 3)
    if min(height, width) < kernel:
        return None
    stride, padding = rng.randint(1, 3), rng.randint(0, kernel // 2)
    if rng.random() < 0.5:
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=rng.random() < 0.3)
    divisor = rng.choice([None, None, None, 1, 3])
    return nn.AvgPool2d(kernel, stride, padding, rng.random() < 0.3, rng.random() < 0.5, divisor)


def adaptive(rng: random.Random, shape: Shape) -> nn.Module:
    size = rng.choice([1, 2, (1, 2), (2, 1)])
    return nn.AdaptiveAvgPool2d(size) if rng.random() < 0.6 else Call(lambda x: x.mean((2, 3), keepdim=True))


def resampled(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[1] * shape[2] > 20:
        return None
    return nn.Upsample(scale_factor=2, mode=rng.choice(["nearest", "bilinear"]))


def padded(rng: random.Random, shape: Shape) -> nn.Module:
    a, b, c, d = (rng.randint(0, 1) for _ in range(4))
    return Call(lambda x: F.pad(x, (a, b, c, d), value=0.25))


def image_part(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels = shape[0]
    if channels < 2:
        return None
    half = channels // 2
    return rng.choice(
        [
            Call(lambda x: x[:, half:] - x[:, : channels - half]),
            Call(lambda x: torch.cat([x, x[:, :1]], dim=1)),
            Call(lambda x: torch.maximum(x[:, :half], x[:, half : 2 * half])),
            Call(lambda x: torch.minimum(x[:, :half], x[:, half : 2 * half])),
            Call(lambda x: x.amax(1, keepdim=True)),
            Call(lambda x: x.transpose(2, 3)),
        ]
    )


def image_norm(rng: random.Random, shape: Shape) -> nn.Module:
    if rng.random() < 0.5:
        return nn.BatchNorm2d(shape[0])
    mean, scale = torch.randn(shape[0], 1, 1), torch.rand(1, shape[0], 1, 1) + 0.3
    return Call(lambda x, m, s: (x - m) / s, mean=mean, scale=scale)


# ---- on signals (channels, length)
def signal(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels, length = shape
    if length < 3:
        return None
    return rng.choice(
        [
            nn.Conv1d(channels, 2, rng.randint(1, 3), rng.randint(1, 2), rng.randint(0, 1)),
            nn.ConvTranspose1d(channels, 2, rng.randint(1, 3), rng.randint(1, 2)),
            nn.AvgPool1d(2, rng.randint(1, 2)),
            nn.MaxPool1d(2, rng.randint(1, 2)),
            nn.Linear(length, 3),
            Call(lambda x: x.flip(2)) if rng.random() < 0.1 else Call(lambda x: x[:, :, 1:] - x[:, :, :-1]),
        ]
    )


# ---- on flat samples
def linear(rng: random.Random, shape: Shape) -> nn.Module:
    """The same affine map in the many forms people write it."""
    n, m = shape[0], rng.randint(1, 6)
    weight, bias = torch.randn(m, n) / n**0.5, torch.randn(m)
    return rng.choice(
        [
            nn.Linear(n, m),
            nn.Linear(n, m, bias=False),
            Call(lambda x, w: torch.mm(x, w), w=weight.mT.contiguous()),
            Call(lambda x, w: x @ w, w=weight.mT.contiguous()),
            Call(lambda x, w: torch.matmul(x, w.t()), w=weight),
            Call(lambda x, w, b: torch.addmm(b, x, w), w=weight.mT.contiguous(), b=bias),
            Call(lambda x, w, b: F.linear(x, 2 * w, b), w=weight, b=bias),
            Call(lambda x, w, mask: F.linear(x, w * mask), w=weight, mask=(torch.rand(m, n) < 0.7).float()),
        ]
    )


def flat_part(rng: random.Random, shape: Shape) -> nn.Module | None:
    n = shape[0]
    if n < 2:
        return None
    half = n // 2
    return rng.choice(
        [
            Call(lambda x: x[:, :half] - x[:, half : 2 * half]),
            Call(lambda x: torch.cat([x, -x], dim=1)),
            Call(lambda x: torch.cat([x, x.flip(1)], dim=1)),
            Call(lambda x: torch.maximum(x[:, :half], x[:, half : 2 * half])),
            Call(lambda x: torch.stack([x, 2 * x], dim=1).flatten(1)),
            Call(lambda x: x.amin(1, keepdim=True)),
            Call(lambda x: x.sum(1, keepdim=True)),
            Call(lambda x: x.mean(dim=-1, keepdim=True) + x),
            Call(lambda x: x[:, [0, 1, 1]]),
        ]
    )


def constant(rng: random.Random, shape: Shape) -> nn.Module:
    """Arithmetic with constants of every shape that broadcasts."""
    n = shape[0]
    value = torch.randn(rng.choice([(1,), (n,), (1, n), ()]))
    value = torch.where(value.abs() < 0.2, torch.full_like(value, 0.5), value)
    forms: list[Callable[..., Tensor]] = [
        lambda x, c: x - c,
        lambda x, c: c - x,
        lambda x, c: x * c,
        lambda x, c: x / c,
        lambda x, c: c + 3 * x,
        lambda x, c: torch.maximum(x, c),
    ]
    return Call(rng.choice(forms), c=value)


def flat_norm(rng: random.Random, shape: Shape) -> nn.Module:
    return nn.BatchNorm1d(shape[0])


# ---- anywhere
def activation(rng: random.Random, shape: Shape) -> nn.Module | None:
    """With numbers that float32 holds: a float32 network rounds its slopes and clip ends, the oracle does not."""
    makers: list[Callable[[], nn.Module]] = [
        nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.SiLU, nn.GELU,
        nn.Softplus, nn.Hardswish, nn.Hardsigmoid,
        lambda: nn.LeakyReLU(rng.choice([0.0, 0.25, 1.5])),
        lambda: nn.PReLU(shape[0]),
        lambda: nn.Hardtanh(-0.375, 0.25),
        lambda: Call(torch.abs),
        lambda: Call(lambda x: x.clamp(min=-0.25)),
        lambda: Call(lambda x: x.clamp(max=rng_value)),
        lambda: Call(lambda x: torch.exp(-x.abs())),
        lambda: ClippedReLU(shape, threshold=rng.choice([0.1, 0.5, 2.0])),
    ]  # fmt: skip
    rng_value = rng.choice([0.25, 1.0, 1e6, 2.0**66])
    if shape[0] % 2 == 0:
        makers += [MaxMin, lambda: ClippedMaxMin(shape)]
    return rng.choice(makers)()


IMAGE_LAYERS: dict[str, tuple[Maker, int]] = {
    "convolution": (convolution, 5), "transposed": (transposed, 1), "pool": (pool, 2), "adaptive": (adaptive, 1),
    "resampled": (resampled, 1), "padded": (padded, 1), "part": (image_part, 1), "norm": (image_norm, 2),
    "activation": (activation, 6),
}  # fmt: skip
SIGNAL_LAYERS: dict[str, tuple[Maker, int]] = {"signal": (signal, 3), "activation": (activation, 2)}
FLAT_LAYERS: dict[str, tuple[Maker, int]] = {
    "linear": (linear, 5), "part": (flat_part, 1), "constant": (constant, 2), "norm": (flat_norm, 1),
    "activation": (activation, 5),
}  # fmt: skip


def layers_for(shape: Shape) -> dict[str, tuple[Maker, int]]:
    """The makers for samples of a shape, each with how often it is drawn."""
    return {1: FLAT_LAYERS, 2: SIGNAL_LAYERS, 3: IMAGE_LAYERS}[len(shape)]
