"""Operators that a trace is rewritten for: einsum, recurrent layers, attention, moves by constant positions, others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.attributes import Case, on
from networks.operators import FLAT

IMAGE, SEQUENCE = (2, 3, 3), (2, 4)
PICK = torch.tensor([2, 0, 1]).view(1, 1, 3, 1)
LATER, PADDED = torch.ones(2, 2, dtype=torch.bool).triu(1), torch.tensor([[False, True]])
CORNER = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
BELOW = torch.zeros(3, 3).masked_fill(torch.ones(3, 3, dtype=torch.bool).tril(-1), -torch.inf)


class Recurrent(nn.Module):
    """A recurrent layer, and a linear one on what is read of it."""

    def __init__(self, kind: type[nn.Module], read: Callable[..., Tensor], **options) -> None:
        super().__init__()
        self.cell, self.read, self.head = kind(4, 2, batch_first=True, **options), read, nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(*self.cell(x)))


class SelfAttention(nn.Module):
    def __init__(self, need_weights: bool = False, options: dict | None = None, **masks: Tensor) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options or {})
        self.need, self.masks = need_weights, masks

    def forward(self, x: Tensor) -> Tensor:
        masks = {k: m.expand(len(x), -1) if k == "key_padding_mask" else m for k, m in self.masks.items()}
        out, weights = self.attention(x, 2 * x, x, need_weights=self.need, **masks)
        return (out if weights is None else out + weights.sum(2, keepdim=True)).flatten(1)


class Encoder(nn.Module):
    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask
        self.layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, norm_first=True, layer_norm_eps=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.mask).mean(1)


def recurrent(kind: type[nn.Module], read: Callable[..., Tensor], **options) -> Case:
    def build() -> nn.Module:
        model = Recurrent(kind, read, **options)
        model(torch.zeros(1, *SEQUENCE))
        return model

    return Case(build, SEQUENCE)


def _last(out: Tensor, state: Tensor) -> Tensor:
    return out[:, -1]


CASES: dict[str, Case] = {
    # einsum
    "einsum weight": on(FLAT, lambda x, w: torch.einsum("bi,oi->bo", x, w).relu(), (4, 6)),
    "einsum axes": on(IMAGE, lambda x, w: torch.einsum("cd,bchw->bhdw", w, x), (2, 2)),
    "einsum scale": on(IMAGE, lambda x, w: torch.einsum("bchw,ch->bwch", x, w), (2, 3)),
    "einsum matrices": on(IMAGE, lambda x, w: torch.einsum("bchw,cwk->bckh", x, w).relu(), (2, 3, 2)),
    "einsum of two": on(IMAGE, lambda x: torch.einsum("bchw,bdhw->bcd", x, x + 1)),
    "einsum three": on(SEQUENCE, lambda x, w: torch.einsum("...qd,...kd,kc->...qc", x, 2 * x, w), (2, 3)),
    "einsum sums": on(IMAGE, lambda x: torch.einsum("bchw->bwc", x).relu()),
    "matrix of each channel": on(IMAGE, lambda x, w, v: w @ x.relu() @ v, (2, 2, 3), (1, 2, 3, 2)),
    # recurrent
    "lstm": recurrent(nn.LSTM, lambda out, states: out[:, -1] + states[0][-1] - states[1][0]),
    "lstm projected": recurrent(nn.LSTM, lambda out, _: out[:, 0], proj_size=1, bias=False),
    "gru both ways": recurrent(nn.GRU, lambda out, state: out[:, -1, :2] + state[0] - state[-1], bidirectional=True),
    "rnn": recurrent(nn.RNN, lambda out, state: state[1], num_layers=2),
    "rnn relu": recurrent(nn.RNN, lambda out, state: state.squeeze(0), nonlinearity="relu"),
    # attention
    "attention": Case(SelfAttention, SEQUENCE),
    "attention weights": Case(lambda: SelfAttention(True, {"bias": False}), SEQUENCE),
    "encoder layer": Case(Encoder, SEQUENCE),
    "attention masked": Case(lambda: SelfAttention(attn_mask=LATER, options={"add_bias_kv": True}), SEQUENCE),
    "attention without padding": Case(lambda: SelfAttention(True, key_padding_mask=PADDED), SEQUENCE),
    "attention causal": on(SEQUENCE, lambda x: F.scaled_dot_product_attention(x, 2 * x, x, is_causal=True)),
    "attention over those seen": on(SEQUENCE, lambda x: F.scaled_dot_product_attention(x, x, x, ~LATER, scale=0.3)),
    "encoder layer masked": Case(lambda: Encoder(LATER), SEQUENCE),
    # minus infinity
    "softmax with a mask": on(IMAGE, lambda x: torch.softmax(x.masked_fill(CORNER, -torch.inf) / 2, 3) * x),
    "softmax with a bias": on(IMAGE, lambda x, b: torch.softmax(x + b + BELOW, 2), (3, 3)),
    "sum and maximum with a mask": on(
        IMAGE,
        lambda x: torch.where(CORNER, -torch.inf, x).logsumexp((2, 3)) + (x + BELOW).amax(-1).amax(-1),
    ),
    # one number per sample
    "numbers": on(FLAT, lambda x: torch.stack([x[:, 0] * x[:, 1].sin(), 2 - x.sum(1), x.amax(-1).exp()], 1)),
    "numbers put back": on(
        FLAT, lambda x: x.norm(dim=1)[:, None] + x.unbind(1)[2].relu().view(-1, 1) - x.max(1)[0].unsqueeze(-1)
    ),
    "cosine of two": on(FLAT, lambda x, w: F.cosine_similarity(x, 2 * x + w, 1, 0.1).unsqueeze(1).relu(), (1, 6)),
    "distance of two": on(FLAT, lambda x, w: F.pairwise_distance(x, torch.tanh(x) + w)[:, None].relu(), (1, 6)),
    # moved by constant positions
    "gather": on(IMAGE, lambda x: torch.gather(x, 2, PICK.expand(x.shape[0], 2, 3, 3)).relu()),
    "indices": on(
        IMAGE,
        lambda x: x[:, [0, 1], [1, 0]].relu() + x[:, :, torch.tensor([True, False, True]), 0].sum(2, keepdim=True),
    ),
    "triangles": on(IMAGE, lambda x: torch.triu(x).relu() - torch.tril(x, -1) + torch.rot90(x, 1, (2, 3))),
    "diagonal": on(
        IMAGE, lambda x: torch.diagonal(x, dim1=2, dim2=3).relu() + torch.take_along_dim(x, PICK, 2)[..., 0]
    ),
    "windows": on(FLAT, lambda x: x.unfold(1, 3, 2).relu()),
    # resampling
    "bicubic": on(IMAGE, lambda x: F.interpolate(x, scale_factor=(2, 1.5), mode="bicubic").relu()),
    "bicubic to a size, aligned": on(IMAGE, lambda x: F.interpolate(x, (2, 5), mode="bicubic", align_corners=True)),
    "antialiased": on(IMAGE, lambda x: F.interpolate(x, (2, 4), mode="bilinear", antialias=True).relu()),
    "antialiased, bicubic, by a factor": on(
        IMAGE, lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True).relu()
    ),
    "nearest exact": on(IMAGE, lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact").relu()),
    "aligned to a size": on(IMAGE, lambda x: F.interpolate(x, (4, 5), mode="bilinear", align_corners=True).relu()),
    # norms and pooling
    "p-norm pooling": on(IMAGE, lambda x: F.lp_pool2d(x + 2, 2, 2) + F.lp_pool2d((x + 2).relu(), 3, 2)),
    "1-norm": on(IMAGE, lambda x: torch.norm(x, p=1, dim=(1, 3)) + torch.linalg.vector_norm(x, 1, dim=-1).sum(1)),
    "normalised": on(FLAT, lambda x: F.normalize(x, dim=1, eps=0.1).relu()),
    "expanded": on(IMAGE, lambda x: x[:, :1].expand_as(x).relu() + x.mean(1, keepdim=True).broadcast_to(x.shape)),
    "product over an axis": on(IMAGE, lambda x: x.prod(1) + x.prod(2, keepdim=True).sum(1)),
    # elementary
    "exponentials": on(FLAT, lambda x: torch.expm1(x) + torch.exp2(x).relu() - 3.0**x),
    "hyperbolic": on(FLAT, lambda x: torch.sinh(x).relu() + torch.cosh(x)),
    "normal": on(FLAT, lambda x: torch.erfc(x) + torch.special.ndtr(x).relu()),
    "sum of exponentials": on(FLAT, lambda x: torch.logaddexp(x, -x).relu()),
    "quotient added": on(FLAT, lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5)),
    "threshold": on(FLAT, lambda x: F.threshold(x, 0.1, 0.1)),
    "power of values": on(FLAT, lambda x: (x * x + 1) ** x.relu()),
    "x log y": on(FLAT, lambda x: torch.special.xlogy(x, x.square() + 1) + torch.nan_to_num(x).relu()),
    "other names": on(FLAT, lambda x: torch.hstack([torch.fmax(x, -x), +torch.fmin(x, x.flip(1))])),
    "second differences": on(FLAT, lambda x: torch.diff(x, n=2).relu()),
    "interpolated by values": on(FLAT, lambda x: torch.lerp(x, x.flip(1), x.square())),
}

#: Refused, each with a word of the reason.
REFUSED_TOO: dict[str, tuple[Case, str]] = {
    **{
        name: (on(FLAT, fn), "step function")
        for name, fn in {
            "sign": torch.sign, "round": torch.round, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc,
            "remainder": lambda x: x % 2,
        }.items()
    },
    "sort": (on(FLAT, lambda x: x.sort(1)[0]), "amax"),
    "topk": (on(FLAT, lambda x: x.topk(2, 1)[0]), "amax"),
    "median": (on(FLAT, lambda x: x.median(1, keepdim=True)[0]), "amax"),
    "hardshrink": (on(FLAT, lambda x: F.hardshrink(x, 0.2)), "softshrink"),
    "threshold that jumps": (on(FLAT, lambda x: F.threshold(x, 0.1, 20.0)), "clamp"),
    "diagonal einsum": (on(IMAGE, lambda x: torch.einsum("bcii->bc", x)), "twice"),
    "einsum over the batch": (on(FLAT, lambda x, w: torch.einsum("bi,bj->ij", x, w), (2, 3)), "batch axis"),
    "positions from the input": (on(FLAT, lambda x: x.gather(1, x.argmax(1, keepdim=True))), "step function"),
    "written into": (on(FLAT, lambda x: _written(x)), "torch.cat"),
    "time first": (recurrent(nn.LSTM, _last)._replace(build=lambda: _TimeFirst()), "batch_first=True"),
    "states as a whole": (recurrent(nn.GRU, lambda out, state: state.transpose(0, 1).flatten(1)), "h[-1]"),
    "nothing left to attend to": (Case(lambda: _Masked(), SEQUENCE), "something in every row"),
    "infinite": (on(FLAT, lambda x: x.masked_fill(torch.arange(6) > 3, torch.inf)), "makes values infinite"),
}  # fmt: skip


def _written(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :2] = x[:, 2:4]
    return y


class _TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.transpose(0, 1))[0][-1]


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, attn_mask=torch.tensor([[True, True], [False, True]]))[0].flatten(1)
