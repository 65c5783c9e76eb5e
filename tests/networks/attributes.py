"""Functional and module forms with odd attributes: what they compute must be what is bounded, or they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.operators import FLAT, LINE, Call

IMAGE = (2, 6, 6)


class With(nn.Module):
    """``fn(x, *parameters)``."""

    def __init__(self, fn: Callable[..., Tensor], *shapes: tuple[int, ...], buffers: bool = False) -> None:
        super().__init__()
        self.fn, self.names = fn, [f"p{i}" for i in range(len(shapes))]
        for name, shape in zip(self.names, shapes, strict=True):
            if buffers:
                self.register_buffer(name, torch.randn(shape))
            else:
                self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, *(getattr(self, name) for name in self.names))


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0].flatten(1)


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


def on(shape: tuple[int, ...], fn: Callable[..., Tensor], *parameters: tuple[int, ...], **options) -> Case:
    return Case(lambda: With(lambda *a: fn(*a).flatten(1), *parameters, **options), shape)


def layers(shape: tuple[int, ...], *modules: Callable[[], nn.Module]) -> Case:
    return Case(lambda: nn.Sequential(*(make() for make in modules), nn.Flatten(), nn.ReLU()), shape)


def conv2d(**options) -> Case:
    return layers(IMAGE, lambda: nn.Conv2d(2, 4, **options), nn.ReLU)


def pool2d(kind: type[nn.Module], *arguments, **options) -> Case:
    return layers(IMAGE, lambda: nn.Conv2d(2, 2, 1), lambda: kind(*arguments, **options))


def resized(shape: tuple[int, ...], **options) -> Case:
    return on(shape, lambda x: F.interpolate(x, **options))


#: Traced as what they are.
RIGHT: dict[str, Case] = {
    # products
    "mm": on(FLAT, torch.mm, (6, 6)),
    "mm oblong": on(FLAT, torch.mm, (6, 4)),
    "mm transposed": on(FLAT, lambda x, w: torch.mm(x, w.t()), (4, 6)),
    "addmm": on(FLAT, lambda x, b, w: torch.addmm(b, x, w), (4,), (6, 4)),
    "addmm factors": on(FLAT, lambda x, b, w: torch.addmm(b, x, w, beta=0.5, alpha=2), (4,), (6, 4)),
    "addmm bias of two axes": on(FLAT, lambda x, b, w: torch.addmm(b, x, w), (1, 4), (6, 4)),
    "addmm transposed": on(FLAT, lambda x, b, w: torch.addmm(b, x, w.t()), (4,), (4, 6)),
    "linear": on(FLAT, F.linear, (4, 6), (4,)),
    "linear of a scaled weight": on(FLAT, lambda x, w: F.linear(x, 2 * w), (4, 6)),
    "linear of a product": on(FLAT, lambda x, w: F.linear(x, w.t() @ w), (4, 6)),
    "linear of a masked weight": on(FLAT, lambda x, w: F.linear(x, w * (w > 0)), (4, 6)),
    "matmul": on(FLAT, torch.matmul, (6, 4)),
    "matmul from the left": on(IMAGE, lambda x, w: torch.matmul(w, x), (5, 6)),
    "matmul from the left of a line": on(LINE, lambda x, w: w @ x, (5, 2)),
    "matmul of an image": on(IMAGE, torch.matmul, (6, 5)),
    "matmul with a vector": on(IMAGE, torch.matmul, (6,)),
    "matmul with an expanded matrix": on(LINE, torch.matmul, (1, 8, 3)),
    "linear of four axes": layers((1, 4, 6), lambda: nn.Linear(6, 5)),
    # convolutions
    "same": conv2d(kernel_size=3, padding="same"),
    "same even": conv2d(kernel_size=2, padding="same"),
    "same even dilated": conv2d(kernel_size=4, padding="same", dilation=3),
    "same oblong": conv2d(kernel_size=(3, 2), padding="same", bias=False),
    "same groups": conv2d(kernel_size=4, padding="same", groups=2),
    "valid": conv2d(kernel_size=3, padding="valid", stride=2),
    "circular": conv2d(kernel_size=3, padding=1, padding_mode="circular"),
    "circular same": conv2d(kernel_size=4, padding="same", padding_mode="circular"),
    "reflect": conv2d(kernel_size=3, padding=2, padding_mode="reflect"),
    "same 1d": layers(LINE, lambda: nn.Conv1d(2, 4, 4, padding="same")),
    "same 3d": layers((1, 4, 4, 4), lambda: nn.Conv3d(1, 2, 2, padding="same")),
    "functional same": on(IMAGE, lambda x, w: F.conv2d(x, w, padding="same"), (3, 2, 2, 2)),
    "transposed output padding": layers(
        IMAGE, lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=(0, 1), groups=2)
    ),
    "transposed, batch norm, leaky relu": layers(
        IMAGE, lambda: nn.ConvTranspose2d(2, 4, 3, stride=2), lambda: nn.BatchNorm2d(4), lambda: nn.LeakyReLU(0.2)
    ),
    # pooling
    "gated linear unit": on(FLAT, lambda x: F.glu(x, 1)),
    "rms norm": on(FLAT, lambda x, w: F.rms_norm(x, (6,), w, 0.1), (6,)),
    "group norm": on(IMAGE, lambda x: F.group_norm(x, 2, eps=0.1)),
    "attention": on((3, 4), lambda x: F.scaled_dot_product_attention(x, x + 1, 2 * x, scale=0.7)),
    "average divisor": pool2d(nn.AvgPool2d, 2, divisor_override=3),
    "average divisor one": pool2d(nn.AvgPool2d, 2, divisor_override=1),
    "average divisor padded": pool2d(nn.AvgPool2d, 3, 2, 1, divisor_override=5),
    "average ceil uncounted": pool2d(nn.AvgPool2d, 4, 3, 2, ceil_mode=True, count_include_pad=False),
    "average ceil": pool2d(nn.AvgPool2d, 4, 3, 2, ceil_mode=True),
    "average 3d divisor": on((1, 4, 4, 4), lambda x: F.avg_pool3d(x, 2, divisor_override=3)),
    "max dilated ceil": pool2d(nn.MaxPool2d, 2, 2, 1, dilation=2, ceil_mode=True),
    "max indices": on(IMAGE, lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "max 3d": on((1, 5, 4, 4), lambda x: F.max_pool3d(x, 2, ceil_mode=True)),
    "adaptive average": pool2d(nn.AdaptiveAvgPool2d, (4, 3)),
    "adaptive average one axis": pool2d(nn.AdaptiveAvgPool2d, (None, 2)),
    "adaptive max": pool2d(nn.AdaptiveMaxPool2d, (3, 2)),
    # resampling
    "nearest": resized(IMAGE, scale_factor=0.7),
    "nearest recomputed": resized(IMAGE, scale_factor=1.7, recompute_scale_factor=True),
    "bilinear": resized(IMAGE, mode="bilinear", scale_factor=(2, 1.3)),
    "bilinear to a size": resized(IMAGE, mode="bilinear", size=(4, 9)),
    "area": resized(IMAGE, mode="area", scale_factor=0.7),
    "trilinear": resized((1, 3, 3, 3), mode="trilinear", scale_factor=2),
    "to twice its size": on(IMAGE, lambda x: F.interpolate(x, size=x.shape[2] * 2)),
    # normalisation and chance that is off
    "functional batch norm": on(
        IMAGE, lambda x, m, v: F.batch_norm(x, m, v.abs() + 0.5, training=False), (2,), (2,), buffers=True
    ),
    "batch norm without weights": layers(
        IMAGE, lambda: nn.Conv2d(2, 2, 1), lambda: nn.BatchNorm2d(2, affine=False, eps=0.1)
    ),
    "dropout of nothing": on(FLAT, lambda x: F.dropout(x, 0.0, training=True)),
    "dropout off": on(FLAT, lambda x: F.dropout(x, 0.5, training=False)),
    "rrelu off": on(FLAT, lambda x: F.rrelu(x, 0.1, 0.5, training=False)),
    # activations
    "softplus": on(FLAT, lambda x: F.softplus(5 * x, beta=3, threshold=30)),
    "hardtanh": on(FLAT, lambda x: F.hardtanh(x, -0.7, 0.3)),
    "leaky relu falling": on(FLAT, lambda x: F.leaky_relu(x, -0.3)),
    "elu": on(FLAT, lambda x: F.elu(3 * x, 2.0)),
    "clamp between tensors": on(
        FLAT, lambda x: torch.clamp(x, torch.linspace(-0.4, 0, 6), torch.linspace(0.1, 0.3, 6))
    ),
    "clamp below a tensor": on(FLAT, lambda x: torch.clamp(x, max=torch.linspace(-0.4, 0, 6))),
    "clamp above a parameter": on(FLAT, lambda x, p: torch.clamp(x, min=p), (6,)),
    "clamp crossed": on(FLAT, lambda x: x.clamp(0.3, -0.2)),
    "prelu": on(IMAGE, F.prelu, (2,)),
    "division by negative numbers": on(FLAT, lambda x: x / torch.tensor([-1.0, 2, 3, -4, 5, 6])),
    "division by minus three": on(FLAT, lambda x: x / -3),
    "scaled addition": on(FLAT, lambda x: torch.add(x, torch.ones(6), alpha=2.5)),
    "scaled subtraction": on(FLAT, lambda x: torch.sub(x, x.relu(), alpha=3)),
    # values moved
    "pad circular": on(IMAGE, lambda x: F.pad(x, (1, 2, 0, 1), mode="circular")),
    "pad negative": on(IMAGE, lambda x: F.pad(x, (-1, 1, 2, -1), value=0.7)),
    "pad channels": on(IMAGE, lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5)),
    "flatten the last axes": on(IMAGE, lambda x: x.flatten(2).relu()),
    "flatten some axes": on(IMAGE, lambda x: x.flatten(-2).relu()),
    "unflatten": on(FLAT, lambda x: x.unflatten(1, (2, 3)).relu()),
    "view": on(IMAGE, lambda x: x.view(x.size(0), -1)),
    "reshape": on(IMAGE, lambda x: x.reshape(x.shape[0], 4, -1).relu().reshape(-1, 72)),
    "shuffled channels": on(
        IMAGE, lambda x: x.view(x.shape[0], 2, 2, 3, 6).transpose(1, 2).reshape(x.shape[0], 2, 6, 6)
    ),
    "pixel shuffle": layers(IMAGE, lambda: nn.Conv2d(2, 8, 1), lambda: nn.PixelShuffle(2)),
    "squeeze some axes": on(IMAGE, lambda x: x.mean((2, 3), keepdim=True).squeeze((2, 3))),
    "mean": on(IMAGE, lambda x: x.mean((-1, -2))),
    "mean of the last axis": on(IMAGE, lambda x: x.mean(-1)),
    "maximum": on(IMAGE, lambda x: x.amax((-2, -1))),
    "flip": on(IMAGE, lambda x: x.flip((2, 3))),
    "roll": on(IMAGE, lambda x: x.roll((-2, 1), (2, 3))),
    "slices": on(IMAGE, lambda x: x[:, :, 1:5:3, -4:-1]),
    "ones like it": on(FLAT, lambda x: x + torch.ones_like(x)),
    "times a length": on(FLAT, lambda x: x * x.shape[1]),
    "recurrent cell": Case(lambda: nn.RNNCell(6, 3), FLAT),
    "without parameters": Case(lambda: Call(lambda x: 2 * x.relu() + 1), FLAT),
}

STEP, CAST, CHANCE, STATISTICS = "step function", "cast", "random numbers", "statistics"

#: Refused, each with a word of the reason.
REFUSED: dict[str, tuple[Case, str]] = {
    "int": (on(FLAT, lambda x: (10 * x).int() / 10), CAST),
    "long": (on(FLAT, lambda x: (10 * x).long().float()), CAST),
    "bool": (on(FLAT, lambda x: x.bool().float()), CAST),
    "uint8": (on(FLAT, lambda x: (50 * (x + 2)).to(torch.uint8).float()), CAST),
    "half": (on(FLAT, lambda x: x.half().float()), STEP),
    "bfloat16": (on(FLAT, lambda x: x.to(torch.bfloat16).float()), STEP),
    "mask": (on(FLAT, lambda x: (x > 0) * x), STEP),
    "where": (on(FLAT, lambda x: torch.where(x > 0, x, 0.1 * x)), STEP),
    "floor division": (on(FLAT, lambda x: x // 1), STEP),
    "truncated division": (on(FLAT, lambda x: torch.div(x, 3.0, rounding_mode="trunc")), STEP),
    "floored division": (on(FLAT, lambda x: torch.div(x, 3.0, rounding_mode="floor")), STEP),
    "average divisor ceil": (pool2d(nn.AvgPool2d, 4, 3, divisor_override=2, ceil_mode=True), "ceil_mode"),
    "softplus threshold": (on(FLAT, lambda x: F.softplus(x, threshold=1.0)), "threshold"),
    "batch norm of the batch": (
        on(IMAGE, lambda x, m: F.batch_norm(x, m, torch.ones(2), training=True), (2,), buffers=True),
        STATISTICS,
    ),
    "batch norm without statistics": (layers(IMAGE, lambda: nn.BatchNorm2d(2, track_running_stats=False)), STATISTICS),
    "dropout": (on(FLAT, lambda x: F.dropout(x, 0.5, training=True)), CHANCE),
    "dropout of channels": (on(IMAGE, lambda x: F.dropout2d(x, 0.5, training=True)), CHANCE),
    "alpha dropout": (on(FLAT, lambda x: F.alpha_dropout(x, 0.5, training=True)), CHANCE),
    "rrelu": (on(FLAT, lambda x: F.rrelu(x, training=True)), CHANCE),
    "noise": (on(FLAT, lambda x: x + torch.randn_like(x)), CHANCE),
    "noise of its own": (on(FLAT, lambda x: x + torch.rand(6)), CHANCE),
    "adaptive max uneven": (pool2d(nn.AdaptiveMaxPool2d, 4), "unequal size"),
    "batch size": (on(FLAT, lambda x: x * x.shape[0]), "batch size"),
    "mean of everything": (Case(lambda: Call(lambda x: x.mean()), FLAT), "batch"),
    "mean of samples": (Case(lambda: Call(lambda x: x.mean(0)), FLAT), "batch axis"),
    "roll of everything": (on(FLAT, lambda x: x.roll(1)), "between samples"),
    "matrix that moves the batch": (Case(lambda: With(lambda x, w: (w @ x.t()).t(), (4, 6)), FLAT), "batch axis"),
    "two outputs": (Case(lambda: Call(lambda x: (x.relu(), x)), FLAT), "tuple"),
}
