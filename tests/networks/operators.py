"""One tiny model per operator: the rows that every test of the operator table runs over.

To test another operator add one row: a name, a model (usually `around` the operator), and the shape of one input.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lirpa_lip import BoundedModule
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin

IMAGE, LINE, FLAT = (2, 5, 4), (2, 8), (6,)


MASK = torch.arange(80).reshape(4, 5, 4) % 3 == 0


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Row(NamedTuple):
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE

    def model(self) -> nn.Module:
        """The same random model each time, in eval mode."""
        torch.manual_seed(0)
        model = self.build().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, -1, 1)
        return model

    def inputs(self, batch: int = 2, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype) * 2 - 1


def around(operator: nn.Module | Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Convolution, the operator, ReLU, a linear layer: the operator sees values of both signs and is no first layer."""

    def build() -> nn.Module:
        inner = copy.deepcopy(operator) if isinstance(operator, nn.Module) else Call(operator)
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), inner, nn.Flatten(), nn.ReLU(), nn.LazyLinear(3))

    return lambda: _initialised(build(), IMAGE)


def on_line(*layers: nn.Module) -> Callable[[], nn.Module]:
    """Layers on signals (channels, length), then ReLU and a linear layer."""
    return lambda: _initialised(nn.Sequential(*copy.deepcopy(layers), nn.Flatten(), nn.ReLU(), nn.LazyLinear(3)), LINE)


def _initialised(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    model.eval()(torch.zeros(1, *shape))  # sizes of lazy layers
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.reset_parameters()
    return model


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2]).view(1, 2, 1, 1))
        self.register_buffer("std", torch.tensor([0.5, 0.25]).view(1, 2, 1, 1))
        self.conv, self.head = nn.Conv2d(2, 3, 3, stride=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv((x - self.mean) / self.std)).flatten(1))


class Residual(nn.Module):
    """Two blocks with shortcuts, one of them through a convolution, and the input added at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, 2, 3, padding=1) for c in (2, 2, 2))
        self.short, self.head = nn.Conv2d(2, 2, 1), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x)) + self.short(x)
        h = F.relu(self.second(F.relu(h)) + h)
        return self.head((self.third(h) - x).flatten(1))


class Dense(nn.Module):
    """Every layer reads all before it; part of it is read again in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 4), nn.Linear(10, 4), nn.Linear(14 + 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.cat([x, F.relu(self.first(x))], dim=1)
        two = torch.cat([one, torch.tanh(self.second(one))], dim=1)
        left, right = two.chunk(2, dim=1)
        a, b = torch.split(two, [6, 8], dim=1)
        return self.head(torch.cat([left - right, b[:, :7] + two[:, 7:], a.relu()], dim=1))


class Shared(nn.Module):
    """One sub-graph read on three paths."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.trunk(x))
        return F.relu(self.left(h)) - 0.5 * F.leaky_relu(self.right(h), 0.2) + h[:, 1:4]


class Thresholds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.floor, self.head = nn.Linear(6, 5), nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.maximum(self.inner(x), self.floor))


class Products(nn.Module):
    """Matrix products along the last axis of samples that are matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 4), nn.Linear(24, 3, bias=False)
        self.register_buffer("matrix", torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((torch.relu(self.inner(x)) @ self.matrix).flatten(1))


class Attention(nn.Module):
    """One head over three tokens of width four."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(4, n) for n in (4, 4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 2, dim=-1)
        return self.head((weights @ self.v(x)).mean(1))


def mlp(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), *copy.deepcopy(layers), nn.Linear(8, 3))


ROWS: dict[str, Row] = {
    # affine
    "linear": Row(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)), FLAT),
    "matmul": Row(Products, (12, 5)),
    "conv2d stride padding": Row(around(nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2))),
    "conv2d dilation": Row(around(nn.Conv2d(4, 3, 3, padding=1, dilation=(1, 2)))),
    "conv1d": Row(on_line(nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(4, 3, 2, dilation=2)), LINE),
    "conv transpose 2d": Row(around(nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1))),
    "conv transpose 2d plain": Row(around(nn.ConvTranspose2d(4, 2, 2, stride=2))),
    "conv transpose 2d groups": Row(around(nn.ConvTranspose2d(4, 4, 3, (1, 2), padding=1, groups=2, dilation=2))),
    "conv transpose 1d": Row(on_line(nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1)), LINE),
    "batch norm 2d": Row(around(nn.BatchNorm2d(4))),
    "batch norm 1d": Row(mlp(nn.BatchNorm1d(8), nn.ReLU()), FLAT),
    "normalisation": Row(Normalised),
    "scale and shift": Row(around(lambda x: 2 * (1 - x / 3) + x * torch.tensor([1.0, -1, 0.5, 2]).view(4, 1, 1))),
    "negate": Row(around(lambda x: -x)),
    "average pool": Row(around(nn.AvgPool2d(2))),
    "average pool leftover": Row(around(nn.AvgPool2d((2, 3)))),
    "average pool overlapping": Row(around(nn.AvgPool2d(3, stride=1))),
    "average pool padded": Row(around(nn.AvgPool2d(3, stride=2, padding=1))),
    "average pool uncounted padding": Row(around(nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False))),
    "average pool ceil": Row(around(nn.AvgPool2d(2, ceil_mode=True))),
    "average pool 1d": Row(on_line(nn.Conv1d(2, 4, 2), nn.ReLU(), nn.AvgPool1d(2)), LINE),
    "adaptive average pool": Row(around(nn.AdaptiveAvgPool2d((5, 2)))),
    "adaptive average pool uneven": Row(around(nn.AdaptiveAvgPool2d((3, 2)))),
    "global average pool": Row(around(nn.AdaptiveAvgPool2d(1))),
    "mean": Row(around(lambda x: x.mean((2, 3)))),
    "sum": Row(around(lambda x: x.sum(3, keepdim=True))),
    # values moved
    "reshape": Row(around(lambda x: x.reshape(x.shape[0], 2, -1))),
    "squeeze": Row(around(lambda x: x.flatten(1).unsqueeze(1).squeeze(1))),
    "transpose": Row(around(lambda x: x.transpose(1, 2).permute(0, 3, 1, 2))),
    "slice": Row(around(lambda x: x[:, 1:3, ::2] - x[:, :2, 2:])),
    "gather": Row(around(lambda x: x[:, 1] + x[:, -1])),
    "gather several": Row(around(lambda x: x[:, [0, 2, 2]])),
    "split": Row(around(lambda x: torch.split(x, 1, dim=1)[2] + x.chunk(4, dim=1)[0])),
    "concat": Row(around(lambda x: torch.cat([x, F.relu(x)], 1))),
    "stack": Row(around(lambda x: torch.stack([x, x.relu()], dim=1).flatten(1))),
    "expand": Row(around(lambda x: x[:, :1].expand(-1, 3, -1, -1))),
    "tile": Row(around(lambda x: x.repeat(1, 2, 1, 1) + x.tile(1, 2, 1, 1))),
    "cumulative sum": Row(around(lambda x: x.cumsum(1))),
    "differences": Row(around(lambda x: x.diff(dim=2))),
    "channel shuffle": Row(around(nn.ChannelShuffle(2))),
    "unfold": Row(around(lambda x: F.unfold(x, 2))),
    "where": Row(around(lambda x: torch.where(MASK, x, 2 * x.relu()).masked_fill(~MASK[:1], 0.5))),
    "pad": Row(around(lambda x: F.pad(x, (1, 0, 0, 2)))),
    "pad with a value": Row(around(lambda x: F.pad(x, (1, 1, 0, 2), value=0.3))),
    "pad 1d": Row(on_line(nn.Conv1d(2, 3, 2), nn.ConstantPad1d((1, 2), 0.5), nn.Conv1d(3, 3, 2)), LINE),
    "crop": Row(around(lambda x: F.pad(x, (-1, 0)))),
    "pad reflect": Row(around(nn.ReflectionPad2d((1, 2, 0, 1)))),
    "pad replicate": Row(around(nn.ReplicationPad2d((1, 2, 0, 1)))),
    "upsample nearest": Row(around(nn.Upsample(scale_factor=2))),
    "upsample fraction": Row(around(nn.Upsample(scale_factor=1.5))),
    "upsample bilinear": Row(around(nn.Upsample(scale_factor=2, mode="bilinear"))),
    "upsample bilinear aligned": Row(around(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))),
    "upsample linear 1d": Row(on_line(nn.Conv1d(2, 3, 2), nn.Upsample(scale_factor=2, mode="linear")), LINE),
    "upsample linear 1d aligned": Row(
        on_line(nn.Conv1d(2, 3, 2), nn.Upsample(scale_factor=2, mode="linear", align_corners=True)), LINE
    ),
    "upsample trilinear aligned": Row(
        around(lambda x: F.interpolate(x.unsqueeze(1), (2, 5, 3), mode="trilinear", align_corners=True))
    ),
    "antialiased bilinear": Row(around(lambda x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True))),
    "antialiased bicubic": Row(around(lambda x: F.interpolate(x, (3, 2), mode="bicubic", antialias=True))),
    "upsample bicubic": Row(around(nn.Upsample(scale_factor=1.5, mode="bicubic"))),
    "dropout": Row(around(nn.Dropout(0.5))),
    "identity": Row(around(nn.Identity())),
    # graphs
    "residual": Row(Residual),
    "dense connections": Row(Dense, FLAT),
    "shared sub-graph": Row(Shared, FLAT),
    # activations
    "relu": Row(around(nn.ReLU())),
    "leaky relu": Row(around(nn.LeakyReLU(0.1))),
    "prelu": Row(around(nn.PReLU(4))),
    "prelu steep and falling": Row(lambda: mlp(nn.ELU(), nn.Linear(8, 8), _steep())(), FLAT),
    "abs": Row(around(torch.abs)),
    "hardtanh": Row(around(nn.Hardtanh(-0.4, 0.3))),
    "relu6": Row(around(lambda x: F.relu6(12 * x))),
    "clamp below": Row(around(lambda x: x.clamp(min=-0.2))),
    "clamp above": Row(around(lambda x: x.clamp(max=0.2))),
    "sigmoid": Row(around(lambda x: torch.sigmoid(4 * x))),
    "tanh": Row(around(lambda x: torch.tanh(3 * x))),
    "elu": Row(around(nn.ELU())),
    "leaky relu between convolutions": Row(around(nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(4, 2, 3)))),
    "elu between convolutions": Row(around(nn.Sequential(nn.ELU(), nn.Conv2d(4, 2, 3)))),
    "elu small alpha": Row(around(nn.ELU(0.3))),
    "selu": Row(around(nn.SELU())),
    "softplus": Row(around(nn.Softplus())),
    "softplus beta": Row(mlp(nn.Softplus(beta=3)), FLAT),
    "silu": Row(around(lambda x: F.silu(3 * x))),
    "gelu": Row(around(lambda x: F.gelu(3 * x))),
    "erf": Row(around(torch.erf)),
    "exp": Row(around(lambda x: torch.exp(-x))),
    "hard sigmoid": Row(around(lambda x: F.hardsigmoid(8 * x))),
    "hard swish": Row(around(lambda x: F.hardswish(8 * x))),
    "atan": Row(around(lambda x: torch.atan(3 * x))),
    "sine": Row(around(lambda x: torch.sin(4 * x))),
    "cosine": Row(around(lambda x: torch.cos(4 * x))),
    "tangent": Row(around(lambda x: torch.tan(x / 4))),
    "arc sine": Row(around(lambda x: torch.asin(torch.tanh(x)))),
    "arc cosine": Row(around(lambda x: torch.acos(torch.tanh(x)))),
    "area sine": Row(around(lambda x: torch.asinh(3 * x))),
    "area cosine": Row(around(lambda x: torch.acosh(x.square() + 1.5))),
    "area tangent": Row(around(lambda x: torch.atanh(x.sin() / 2))),
    "log": Row(around(lambda x: torch.log(x.abs() + 0.5))),
    "square root": Row(around(lambda x: torch.sqrt(F.softplus(x)))),
    "reciprocal": Row(around(lambda x: 1 / (1.5 + torch.tanh(x)))),
    "square": Row(around(lambda x: x**2 - torch.square(x + 1))),
    "cube": Row(around(lambda x: x**3)),
    "fractional power": Row(around(lambda x: (x.abs() + 0.1) ** 1.5)),
    "negative power": Row(around(lambda x: (x.abs() + 0.5) ** -2)),
    "softsign": Row(around(F.softsign)),
    "mish": Row(around(F.mish)),
    "log sigmoid": Row(around(lambda x: F.logsigmoid(x) + 0.7)),
    "gelu by tanh": Row(around(nn.GELU("tanh"))),
    # products of two values that vary
    "product": Row(around(lambda x: x[:, :2] * torch.tanh(x[:, 2:]))),
    "product broadcast": Row(around(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)))),
    "product of a value with its function": Row(around(lambda x: x * x.relu())),
    "quotient": Row(around(lambda x: x[:, :2] / (x[:, 2:].abs() + 0.5))),
    "quotient by a root": Row(around(lambda x: x / torch.sqrt((x * x).sum(1, keepdim=True) + 0.1))),
    "matrix product of two values": Row(around(lambda x: x[:, :, 1:] @ x[:, :, :4].transpose(2, 3))),
    "attention": Row(Attention, (3, 4)),
    "layer norm": Row(around(nn.LayerNorm(4, eps=0.1))),
    "softmax": Row(around(lambda x: torch.softmax(3 * x, 1))),
    "euclidean norm": Row(around(lambda x: (x + 1).norm(dim=1))),
    "variance": Row(around(lambda x: 2 * x.std((1, 3)) - x.var((1, 3), keepdim=True)[:, 0, :, 0])),
    "instance norm": Row(around(nn.InstanceNorm2d(4, eps=0.1, affine=True))),
    "group norm": Row(around(nn.GroupNorm(2, 4, eps=0.1))),
    "gated linear unit": Row(around(nn.GLU(1))),
    "celu": Row(around(nn.CELU(0.7))),
    "softshrink": Row(around(nn.Softshrink(0.2))),
    "interpolation": Row(around(lambda x: torch.lerp(x, x.relu(), 0.3) + torch.hypot(x, x + 2))),
    "attention in one call": Row(around(lambda x: F.scaled_dot_product_attention(x, 2 * x, x + 1))),
    "log softmax": Row(around(lambda x: torch.log_softmax(3 * x, 1) + 1)),
    "log sum exp": Row(around(lambda x: torch.logsumexp(3 * x, (2, 3)))),
    "clipped relu": Row(around(ClippedReLU((4, 5, 4), threshold=0.3))),
    # sorting
    "maxmin": Row(around(MaxMin())),
    "clipped maxmin": Row(around(ClippedMaxMin((4, 5, 4)))),
    "max pool": Row(around(nn.MaxPool2d(2))),
    "max pool overlapping": Row(around(nn.MaxPool2d(3, stride=2, padding=1))),
    "max pool dilated": Row(around(nn.MaxPool2d(2, stride=1, padding=1, dilation=2))),
    "max pool ceil": Row(around(nn.MaxPool2d(2, ceil_mode=True))),
    "max pool 1d": Row(on_line(nn.Conv1d(2, 3, 2), nn.MaxPool1d(3, stride=2, padding=1)), LINE),
    "adaptive max pool": Row(around(nn.AdaptiveMaxPool2d((1, 2)))),
    "max over an axis": Row(around(lambda x: x.amax(1))),
    "max over axes": Row(around(lambda x: x.amax((2, 3), keepdim=True))),
    "min over an axis": Row(around(lambda x: x.amin(2))),
    "maximum": Row(around(lambda x: torch.maximum(x[:, 0], x[:, 2]))),
    "minimum": Row(around(lambda x: torch.minimum(x[:, 0], x[:, 2] + x[:, 3]))),
    "maximum with a parameter": Row(Thresholds, FLAT),
}


def _steep() -> nn.Module:
    layer = nn.PReLU(8)
    nn.init.uniform_(layer.weight, -1.5, 2)
    return layer


@functools.cache
def traced(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, BoundedModule]:
    """The model of a row and its wrapped form, traced once for all tests."""
    model = ROWS[name].model().to(dtype)
    return model, BoundedModule(model, ROWS[name].inputs(2, dtype=dtype))


#: Models that must be refused, and a word that the message has to hold beside the operator's name.
REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "round": (lambda: Call(torch.round), FLAT, "step function"),
    "gamma function": (lambda: Call(torch.lgamma), FLAT, "supported are"),
}
