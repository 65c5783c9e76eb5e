"""Layers in the words of einsum, indexing, recurrence, attention, resampling and reductions, as people write them."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Call, Shape


class First(nn.Module):
    """The output of a layer that returns its states, or its weights, too."""

    def __init__(self, layer: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(*[x] * self.times)[0]


class Cells(nn.Module):
    """A recurrent cell over the rows of a signal, unrolled by hand."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.cell, self.width = cell, width

    def forward(self, x: Tensor) -> Tensor:
        state: Tensor | tuple[Tensor, Tensor] = x.new_zeros(x.shape[0], self.width)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, state)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state


def flat_operator(rng: random.Random, shape: Shape) -> nn.Module:
    n = shape[0]
    weight, scale = torch.randn(n, 3) / n**0.5, torch.rand(n) + 0.5
    index = torch.tensor([rng.randrange(n) for _ in range(3)])
    mask = torch.rand(n) < 0.6
    mask[0] = True
    half = max(n // 2, 1)
    return rng.choice(
        [
            Call(lambda x, w: torch.einsum("bi,ij->bj", x, w), w=weight),
            Call(lambda x, w, s: torch.einsum("bi,i,ij->bj", x, s, w), w=weight, s=scale),
            Call(lambda x, w: torch.einsum("bi,bj->bij", x, torch.tanh(x @ w)).flatten(1), w=weight),
            Call(lambda x: torch.einsum("bi,bi->b", x, x).unsqueeze(1)),
            Call(lambda x: x[:, index]),
            Call(lambda x: torch.index_select(x, 1, index)),
            Call(lambda x: torch.gather(x, 1, index.expand(x.shape[0], -1))),
            Call(lambda x: x[:, mask]),
            Call(lambda x: torch.where(mask, x, 0.5 * x)),
            Call(lambda x: x.masked_fill(mask, 0.25)),
            Call(lambda x: x * mask),
            Call(lambda x: torch.cumsum(x, 1)),
            Call(lambda x: torch.roll(x, 1, 1) - x),
            Call(lambda x: x.repeat(1, 2)),
            Call(lambda x: x.tile((1, 2)) + 1),
            Call(lambda x: x.unsqueeze(1).expand(-1, 2, -1).flatten(1)),
            Call(lambda x: torch.stack(x.chunk(n, 1), 1).squeeze(2)),
            Call(lambda x: torch.cat(x.split(half, 1)[::-1], 1)),
            Call(lambda x: torch.prod(x, 1, keepdim=True)),
            Call(lambda x: x.norm(dim=1, keepdim=True)),
            Call(lambda x: x.norm(p=1, dim=1, keepdim=True)),
            Call(lambda x: x.abs().amax(-1, keepdim=True)),
            Call(lambda x: x.max(1, keepdim=True).values - x.min(1, keepdim=True).values),
            Call(lambda x: torch.lerp(x, x.flip(1), 0.25)),
            Call(lambda x: torch.logaddexp(x, x.flip(1))),
            Call(lambda x: torch.erfc(x) + torch.expm1(0.5 * x)),
            Call(lambda x: torch.sinh(x) - torch.cosh(x.flip(1))),
            Call(lambda x: 0.5**x + torch.exp2(x)),
            Call(lambda x: F.threshold(x, 0.25, 0.25)),
            Call(lambda x: torch.std(torch.cat([x, torch.ones_like(x)], 1), 1, keepdim=True, unbiased=False)),
            Call(lambda x, s: torch.addcmul(x, x, s), s=scale),
            Call(lambda x: torch.diff(torch.cat([x, x[:, :1]], 1), dim=1)),
        ]
    )


def signal_operator(rng: random.Random, shape: Shape) -> nn.Module:
    width = shape[1]
    weight = torch.randn(width, 3) / width**0.5
    heads = rng.choice([h for h in (1, 2, width) if width % h == 0])
    cell = rng.choice([nn.RNNCell, nn.GRUCell, nn.LSTMCell])
    layer = rng.choice([nn.RNN, nn.GRU, nn.LSTM])
    found: list[nn.Module] = [
        Call(lambda x, w: torch.einsum("bsi,ij->bsj", x, w), w=weight),
        Call(lambda x: torch.einsum("bsi,bti->bst", x, x)),
        Call(lambda x, w: torch.einsum("...i,ij->...j", x, w), w=weight),
        First(layer(width, 3, batch_first=True, num_layers=rng.choice([1, 1, 2]), bidirectional=rng.random() < 0.3)),
        First(layer(width, 2, batch_first=True)),
        Cells(cell(width, 2), 2),
        First(nn.MultiheadAttention(width, heads, batch_first=True), 3),
        nn.TransformerEncoderLayer(width, heads, 4, batch_first=True, layer_norm_eps=0.125),
        Call(lambda x: x.transpose(1, 2)),
        Call(lambda x: torch.tril(x) + torch.triu(x, 1)),
        Call(lambda x: torch.triu(x)),
        Call(lambda x: x.diagonal(dim1=1, dim2=2)),
        Call(lambda x: x.rot90(1, (1, 2))),
        Call(lambda x: x.mean(1)),
        Call(lambda x: torch.logsumexp(x, (1, 2), keepdim=True)),
        Call(lambda x: x.amax((1, 2), keepdim=True)),
        Call(lambda x: x.unfold(2, 2, 1).flatten(2)) if width > 1 else nn.Linear(width, 2),
        nn.Linear(width, 2),
        nn.ReflectionPad1d(1) if width > 1 else nn.ReplicationPad1d(1),
        nn.LPPool1d(2, 2) if width > 1 else nn.ReplicationPad1d(1),
        nn.Upsample(scale_factor=2, mode=rng.choice(["nearest", "linear"])),
        nn.Flatten(),
    ]
    return rng.choice(found)


def image_operator(rng: random.Random, shape: Shape) -> nn.Module:
    channels, height, width = shape
    mixing = torch.randn(channels, 2) / channels**0.5
    small = height * width <= 16
    found: list[nn.Module] = [
        Call(lambda x, w: torch.einsum("bchw,cd->bdhw", x, w), w=mixing),
        Call(lambda x: torch.einsum("bchw,bchw->bc", x, x)),
        Call(lambda x: x.sum((2, 3))),
        Call(lambda x: x.mean((-2, -1), keepdim=True) - x),
        Call(lambda x: x.amax((2, 3))),
        Call(lambda x: torch.logsumexp(x, 1)),
        Call(lambda x: x.flatten(2).mean(-1)),
        Call(lambda x: x.permute(0, 2, 3, 1)),
        Call(lambda x: x.square().mean((2, 3))),
        nn.ZeroPad2d((1, 0, 0, 1)),
        nn.ReplicationPad2d(1) if small else nn.Identity(),
        nn.ReflectionPad2d(1) if small and min(height, width) > 1 else nn.Identity(),
        nn.LPPool2d(2, 2) if min(height, width) > 1 else nn.Identity(),
        nn.Unfold(2) if min(height, width) > 1 and small else nn.Flatten(),
        nn.PixelShuffle(2) if channels % 4 == 0 else nn.Flatten(),
        nn.PixelUnshuffle(2) if height % 2 == 0 and width % 2 == 0 else nn.Flatten(),
        nn.ChannelShuffle(2) if channels % 2 == 0 else nn.Flatten(),
        nn.Dropout2d(0.5),
        nn.AdaptiveMaxPool2d(1),
        Call(lambda x: x.roll(1, 3)),
    ]
    if small:
        mode = rng.choice(["nearest", "nearest-exact", "bilinear", "bicubic"])
        aligned = {} if mode.startswith("nearest") else {"align_corners": rng.random() < 0.5}
        found += 2 * [Call(lambda x: F.interpolate(x, scale_factor=2, mode=mode, **aligned))]
        found += [Call(lambda x: F.interpolate(x, size=(3, 5), mode=mode, **aligned))]
    return rng.choice(found)


OPERATORS = {1: flat_operator, 2: signal_operator, 3: image_operator}
