"""What a trace cannot carry is refused by name, before it is traced, and nothing else is."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from networks.operators import ROWS, Call
from torch import nn
from torch.nn import functional as F

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import LirpaLipError, UntraceableError
from lirpa_lip.trust.audit import audited

X = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x + self.count


class Average(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1
        return x - self.mean


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(1)

    def forward(self, x):
        out = x + self.last
        self.last = out.mean()
        return out


class Clipped(nn.Module):
    """Weights clipped in forward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        self.layer.weight.data.clamp_(-0.1, 0.1)
        return self.layer(x)


def into_place(x):
    buffer = torch.zeros(2, 4)
    buffer[:, 1] = x[:, 0]
    return buffer * buffer[0, 1].item()


REFUSED = {
    "noise": (lambda x: x + torch.rand_like(x), "random numbers"),
    "dropout in functional form": (lambda x: F.dropout(x, 0.5, True), "random numbers"),
    "dropout2d in functional form": (
        lambda x: F.dropout2d(x[:, :, None, None], 0.5, True).flatten(1),
        "random numbers",
    ),
    "rrelu in training": (lambda x: F.rrelu(-x, training=True), "random numbers"),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
    "no running statistics": (nn.BatchNorm1d(4, track_running_stats=False).eval(), "statistics of the batch"),
    "if": (lambda x: x if x.sum() > 3 else -x, "number or decision"),
    "while": (lambda x: x / 2 if bool((x > 0.5).any()) else x, "number or decision"),
    "item": (lambda x: x * x.max().item(), "number or decision"),
    "equal": (lambda x: x if torch.equal(x, x) else -x, "number or decision"),
    "behind a view": (into_place, "number or decision"),
    "boolean index": (lambda x: x[:, x[0] > -1], "boolean index"),
    "numpy": (lambda x: x * float(x.detach().numpy().max()), "NumPy"),
    "tolist": (lambda x: x * x.tolist()[0][0], "NumPy or Python"),
    "int": (lambda x: (10 * x).int() / 10, "int32"),
    "uint8": (lambda x: (255 * x).to(torch.uint8).float() / 255, "uint8"),
    "bool": (lambda x: x * x.bool(), "bool"),
    "index": (lambda x: torch.eye(4)[(3 * x[:, 0]).long()], "int64"),
    "output": (lambda x: (10 * x).long(), "int64"),
    "counter": (Counter(), "Counter.count"),
    "average": (Average(), "Average.mean"),
    "memory": (Memory(), "Memory.last"),
    "clipped weights": (Clipped(), "Linear.weight"),
}


def module(what):
    return what if isinstance(what, nn.Module) else Call(what)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    what, word = REFUSED[name]
    model = module(what)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UntraceableError, match=word) as caught:
        BoundedModule(model, X)
    assert isinstance(caught.value, LirpaLipError) and ";" in str(caught.value)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), "a refused model is as it was"


def test_the_line_is_named():
    with pytest.raises(UntraceableError, match=r"test_audit.py:\d+ in <lambda>"):
        audited(Call(lambda x: x if x[0, 0] > 2 else -x), (X,))


class Cached(nn.Module):
    """Keeps what nobody reads."""

    def __init__(self):
        super().__init__()
        self.last, self.calls = None, 0

    def forward(self, x):
        self.last, self.calls = x, self.calls + 1
        return 2 * x


ACCEPTED = {
    "where": lambda x: torch.where(x > 0.5, x, 0.1 * x),
    "mask": lambda x: x * (x > 0).float(),
    "shapes": lambda x: x.reshape(x.shape[0], -1) / x.shape[1],
    "dropout in eval mode": lambda x: F.dropout(x, 0.5, False),
    "rrelu in eval mode": lambda x: F.rrelu(x, training=False),
    "attention without dropout": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
    "in place on what it made": lambda x: F.relu_(2 * x).add_(1),
    "in place on its input": lambda x: F.relu(x, inplace=True),
    "instance norm": lambda x: F.instance_norm(x[:, None])[:, 0],
    "a constant read": lambda x: x * torch.tensor(0.5).item(),
    "indices of constants": lambda x: x[:, torch.tensor([0, 2])],
    "maximum with indices": lambda x: x.max(1, keepdim=True)[0],
    "sorting": lambda x: x.sort(1)[0],
    "cached": Cached(),
    "script": torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
    "parametrised": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral norm": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).eval(),
    "orthogonal": nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)).eval(),
    "lstm": nn.LSTM(4, 3).eval(),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_nothing_else_is_refused(name):
    model, x = module(ACCEPTED[name]), X.clone()
    found, expected = audited(model, (x,)), model(X.clone())
    found, expected = (t[0] if isinstance(t, tuple) else t for t in (found, expected))
    torch.testing.assert_close(found, expected)
    assert torch.equal(x, X)


def test_every_row_of_the_operator_table():
    for row in ROWS.values():
        model = row.model()
        assert torch.equal(audited(model, (row.inputs(2),)), model(row.inputs(2)))


def test_nothing_is_disturbed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU())
    model[1].eval()
    flags = [m.training for m in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    x = X.clone().requires_grad_()
    out = audited(model, (x,))
    assert torch.equal(torch.rand(3), expected) and [m.training for m in model.modules()] == flags
    assert not out.requires_grad and x.grad is None and model[0].weight.grad is None
    with pytest.raises(UntraceableError):
        audited(Call(lambda t: t + torch.rand(4)), (x,))
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), expected)


def test_python_randomness_is_refused() -> None:
    model = Call(lambda x: x * (1 + random.random()))
    with pytest.raises(UntraceableError, match="Python's or NumPy's"):
        BoundedModule(model, torch.zeros(1, 2))
    with pytest.raises(UntraceableError, match="Python's or NumPy's"):
        BoundedModule(Call(lambda x: x + float(np.random.rand())), torch.zeros(1, 2))


def test_a_forward_that_makes_tensors_makes_them_in_the_callers_default_type() -> None:
    """auto_LiRPA is run with the model's precision as default; a number the model makes must not gain digits by it."""
    model = Call(lambda x: x + torch.tensor(0.1)).double()
    bounded = BoundedModule(model, torch.zeros(1, 1, dtype=torch.float64))
    x = torch.zeros(1, 1, dtype=torch.float64)
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.0)),)
    for method in ("local-lip", "ibp", "crown"):
        lower, upper = bounded.compute_bounds(x=ball, method=method)
        assert float(lower) <= float(model(x)) <= float(upper), method
        assert abs(float(upper) - float(torch.tensor(0.1))) < 1e-12
