"""Networks by name: published shapes and starts, and one's own."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from lirpa_lip.errors import ConfigError, ShapeError, UnknownMethodError
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin
from lirpa_lip.training.models import ACTIVATIONS, ARCHITECTURES, Normalize, build_model

INPUTS = {"4c3f": ((1, 28, 28), 10), "6c2f": ((3, 32, 32), 10), "8c2f": ((3, 64, 64), 200)}


def linear_parameters(model: nn.Module) -> int:
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(p.numel() for m in layers for p in m.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_runs(arch: str, activation: str):
    shape, classes = INPUTS.get(arch, ((1, 28, 28), 10))
    model = build_model(arch, shape, classes, activation)
    assert model(torch.rand(2, *shape)).shape == (2, classes)


def test_published_sizes():
    def conv(i, o, k):
        return o * i * k * k + o

    def fc(i, o):
        return o * i + o

    expected = {
        "4c3f": conv(1, 32, 3) + conv(32, 32, 4) + conv(32, 64, 3) + conv(64, 64, 4)
        + fc(3136, 512) + fc(512, 512) + fc(512, 10),
        "6c2f": conv(3, 32, 3) + conv(32, 32, 3) + conv(32, 32, 4) + conv(32, 64, 3) + conv(64, 64, 3)
        + conv(64, 64, 4) + fc(4096, 512) + fc(512, 10),
        "8c2f": conv(3, 64, 3) + conv(64, 64, 3) + conv(64, 64, 4) + conv(64, 128, 3) + conv(128, 128, 3)
        + conv(128, 128, 4) + conv(128, 256, 3) + conv(256, 256, 4) + fc(9216, 256) + fc(256, 200),
    }  # fmt: skip
    for arch, (shape, classes) in INPUTS.items():
        assert linear_parameters(build_model(arch, shape, classes, "relu")) == expected[arch]


def test_published_starts():
    model = build_model("6c2f", (3, 32, 32), 10, "clipped_relu")
    layers = [m for m in model if isinstance(m, ClippedReLU)]
    assert len(layers) == 7 and all((layer.threshold == 2.0).all() for layer in layers)
    assert layers[0].threshold.shape == (32, 32, 32)  # learnable per neuron
    model = build_model("6c2f", (3, 32, 32), 10, "clipped_maxmin")
    starts = [
        (m.max_threshold.mean().item(), m.min_threshold.mean().item()) for m in model if isinstance(m, ClippedMaxMin)
    ]
    published = [(0.1, -0.1), (0.1, -0.15), (0.15, -0.15), (0.15, -0.15), (0.2, -0.2), (0.3, -0.3), (1.2, -1.2)]
    assert starts == [pytest.approx(pair, rel=1e-5) for pair in published]
    torch.manual_seed(0)
    weight = build_model("6c2f", (3, 32, 32), 10)[0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.1)


def test_threshold_and_activation_choice():
    model = build_model("cnn-tiny", (1, 8, 8), 10, "clipped_relu", threshold=0.3)
    assert all((m.threshold == 0.3).all() for m in model if isinstance(m, ClippedReLU))
    model = build_model("cnn-tiny", (1, 8, 8), 10, "clipped_maxmin", threshold=0.3)
    assert all((m.min_threshold == -0.3).all() for m in model if isinstance(m, ClippedMaxMin))
    assert sum(isinstance(m, MaxMin) for m in build_model("cnn-tiny", (1, 8, 8), 10, "maxmin")) == 3


def test_normalisation_is_inside():
    model = build_model("cnn-tiny", (2, 8, 8), 10, mean=(0.5, 0.2), std=(0.25, 0.1))
    assert isinstance(model[0], Normalize)
    x = torch.rand(3, 2, 8, 8)
    expected = torch.stack([(x[:, 0] - 0.5) / 0.25, (x[:, 1] - 0.2) / 0.1], dim=1)
    torch.testing.assert_close(model[0](x), expected)
    with pytest.raises(ConfigError, match="stds"):
        Normalize([0.5], [0.0])


def test_own_module(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def make(input_shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes))\n"
        "def wrong(input_shape, classes):\n    return 3\n"
        "def fixed():\n    return make((1, 4, 4), 3)\n"
        "def partly(classes, width=4, *, input_shape=None):\n    return make(input_shape, classes)\n"
        "def anything(**settings):\n    return make(**settings)\n"
        "def greedy(depth, input_shape):\n    return make(input_shape, 3)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for factory in ("make", "fixed", "partly", "anything"):
        assert build_model(f"own_network:{factory}", (1, 4, 4), 3)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    for path, message in (
        ("own_network:absent", "cannot import"),
        ("absent:make", "PYTHONPATH"),
        ("own_network:wrong", "int"),
        ("own_network:greedy", "depth"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(path, (1, 4, 4), 3)


def test_errors():
    with pytest.raises(UnknownMethodError, match="4c3f"):
        build_model("5c3f", (1, 28, 28), 10)
    with pytest.raises(UnknownMethodError, match="maxmin"):
        build_model("4c3f", (1, 28, 28), 10, "sine")
    with pytest.raises(ShapeError, match="too small"):
        build_model("8c2f", (3, 4, 4), 10)
