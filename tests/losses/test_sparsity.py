"""The sparsity loss: its published formulas, and that it is zero exactly where everything is constant."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lirpa_lip.errors import ConfigError
from lirpa_lip.losses import ActivationInterval, SparsityLoss
from lirpa_lip.losses.local_bound import parts_of
from lirpa_lip.network.node import node_interval
from lirpa_lip.network.sequential import SequentialReader
from lirpa_lip.nn import ClippedMaxMin, ClippedReLU, MaxMin

relu = torch.relu


def intervals_of(layer: nn.Module, lower: torch.Tensor, upper: torch.Tensor) -> list[ActivationInterval]:
    """What a bound hands to the loss of one module on its input's interval."""
    graph = SequentialReader(nn.Sequential(layer), lower).graph()
    known, found = {graph.input: (lower, upper)}, []
    for node in graph:
        if not node.is_input:
            known[node.name] = node_interval(node, known)
        if node.activation is not None:
            found += parts_of(node.activation, *known[node.parents[0]])
    return found


@pytest.fixture
def interval():
    g = torch.Generator().manual_seed(0)
    lower = torch.randn(5, 6, 3, 3, generator=g)
    return lower, lower + torch.rand(lower.shape, generator=g)


def test_relu_and_clipped_relu(interval):
    lower, upper = interval
    loss = SparsityLoss(saturation=0.5)
    torch.testing.assert_close(loss(intervals_of(nn.ReLU(), lower, upper)), relu(upper).mean())
    layer = ClippedReLU((6, 3, 3), threshold=0.7)
    expected = relu(upper).mean() + 0.5 * relu(0.7 - lower).mean()
    torch.testing.assert_close(loss(intervals_of(layer, lower, upper)), expected)


def test_clipped_maxmin(interval):
    lower, upper = interval
    layer = ClippedMaxMin((6, 3, 3), max_threshold=0.4, min_threshold=-0.3)
    largest_lower = torch.maximum(lower[:, :3], lower[:, 3:])
    smallest_upper = torch.minimum(upper[:, :3], upper[:, 3:])
    expected = relu(0.4 - largest_lower).mean() + relu(smallest_upper + 0.3).mean()
    torch.testing.assert_close(SparsityLoss()(intervals_of(layer, lower, upper)), expected)


def test_thresholds_learn(interval):
    lower, upper = interval
    layer = ClippedReLU((6,), threshold=0.7)  # one threshold per channel
    SparsityLoss()(intervals_of(layer, lower, upper)).backward()
    expected = (0.7 > lower).float().mean(dim=(0, 2, 3)) / 6
    torch.testing.assert_close(layer.raw_threshold.grad, expected)


def test_zero_where_all_is_constant():
    low, high = torch.full((2, 4), -2.0), torch.full((2, 4), -1.0)
    assert SparsityLoss()([ActivationInterval(low, high, 0.0, None)]) == 0
    assert SparsityLoss()([ActivationInterval(low, high, None, torch.tensor(-3.0))]) == 0


def test_layers_without_a_constant_part(interval):
    assert SparsityLoss()(intervals_of(nn.Tanh(), *interval)) == 0
    assert SparsityLoss()(intervals_of(MaxMin(), *interval)) == 0
    assert SparsityLoss()([]) == 0


def test_bad_setting():
    with pytest.raises(ConfigError, match="saturation"):
        SparsityLoss(-1.0)
