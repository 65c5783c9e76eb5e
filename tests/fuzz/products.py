"""Layers in which two values of the network meet (products, attention, normalisations), and rarer activations."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F

from .layers import Call, Shape


def flat_product(rng: random.Random, shape: Shape) -> nn.Module:
    n = shape[0]
    weight = torch.randn(n, n) / n**0.5
    found: list[nn.Module] = [
        Call(lambda x: x * x.flip(1)),
        Call(lambda x: x * torch.relu(x)),
        Call(lambda x, w: x * torch.sigmoid(x @ w), w=weight),
        Call(lambda x, w: (x @ w) * (x - 0.5), w=weight),
        Call(lambda x, w: x / (1 + (x @ w).abs()), w=weight),
        Call(lambda x: x / (x.square().sum(1, keepdim=True) + 1).sqrt()),
        Call(lambda x: F.normalize(torch.cat([x, torch.ones_like(x[:, :1])], 1), dim=1)),
        Call(lambda x: (x.unsqueeze(2) @ x.unsqueeze(1)).flatten(1)),
        Call(lambda x: torch.softmax(3 * x, 1)),
        Call(lambda x: torch.log_softmax(x, -1)),
        Call(lambda x: torch.logsumexp(x, 1, keepdim=True)),
        Call(lambda x: x.var(1, keepdim=True, unbiased=False) + x),
        Call(lambda x: (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True, unbiased=False) + 0.25).rsqrt()),
        nn.LayerNorm(n, eps=rng.choice([0.125, 1e-2])),
    ]
    if hasattr(nn, "RMSNorm"):
        found.append(nn.RMSNorm(n, eps=0.125))
    if n % 2 == 0:
        found.append(nn.GLU(1))
    return rng.choice(found)


def signal_product(rng: random.Random, shape: Shape) -> nn.Module:
    channels, length = shape
    weight = torch.randn(length, length) / length**0.5
    found: list[nn.Module] = [
        Call(lambda x: F.scaled_dot_product_attention(x, x, x)),
        Call(lambda x, w: torch.softmax((x @ w) @ x.transpose(1, 2), -1) @ x, w=weight),
        Call(lambda x: x @ x.transpose(1, 2)),
        nn.LayerNorm(length, eps=0.125),
        nn.GroupNorm(1, channels, eps=0.125),
        nn.InstanceNorm1d(channels, eps=0.125),
        nn.Softmax(dim=rng.choice([1, 2])),
        Call(lambda x: x * x.mean(2, keepdim=True)),
    ]
    return rng.choice(found)


def image_product(rng: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    weight = torch.randn(channels, channels)
    found: list[nn.Module] = [
        nn.GroupNorm(rng.choice([g for g in (1, 2, channels) if channels % g == 0]), channels, eps=0.125),
        nn.InstanceNorm2d(channels, eps=0.125),
        nn.LayerNorm(shape[1:], eps=0.125),
        nn.Softmax2d(),
        Call(lambda x, w: x * torch.sigmoid(x.mean((2, 3)) @ w)[:, :, None, None], w=weight),
        Call(lambda x: x * x.transpose(2, 3) if x.shape[2] == x.shape[3] else x * x),
        nn.LocalResponseNorm(2, alpha=0.125),
    ]
    return rng.choice(found)


def smooth(rng: random.Random, shape: Shape) -> nn.Module:
    """Activations beyond those of networks, on their whole domain."""
    found: list[nn.Module] = [
        nn.Mish(), nn.Softsign(), nn.LogSigmoid(), nn.CELU(0.5), nn.Tanhshrink(), nn.Softshrink(0.25),
        Call(torch.sin), Call(torch.cos), Call(torch.atan), Call(torch.erf), Call(torch.square),
        Call(lambda x: x**3),
        Call(lambda x: (x.square() + 0.5).sqrt()),
        Call(lambda x: (x.abs() + 0.5).log()),
        Call(lambda x: (1 + x.square()).reciprocal()),
        Call(lambda x: torch.hypot(x, torch.ones_like(x))),
    ]  # fmt: skip
    return rng.choice(found)


PRODUCTS = {1: flat_product, 2: signal_product, 3: image_product}
