"""Weights that SDP-CROWN's authors publish fit the architectures, however their layers are named."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from lib.sdp_networks import NETWORKS, published_network


def weights_of(body: nn.Sequential, by_layer: bool) -> dict[str, torch.Tensor]:
    """Names by place, or ``conv1, conv2, …, fc1, …``; in no order that could help."""
    counts, found = {"conv": 0, "fc": 0}, {}
    for place, layer in body.named_children():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        kind = "conv" if isinstance(layer, nn.Conv2d) else "fc"
        counts[kind] += 1
        name = f"{kind}{counts[kind]}" if by_layer else place
        found |= {f"{name}.weight": layer.weight.detach(), f"{name}.bias": layer.bias.detach()}
    return dict(sorted(found.items(), key=lambda item: item[0][::-1]))


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_published_weights_are_read_by_place_and_by_layer(name, by_layer):
    torch.manual_seed(0)
    body = NETWORKS[name].make()
    mnist = "mnist" in name
    x = torch.rand(2, 1, 28, 28) if mnist else torch.rand(2, 3, 32, 32)
    found = published_network(name, weights_of(body, by_layer))
    inputs = x if mnist else (x - torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1) / 255) / 0.225
    torch.testing.assert_close(found(x), body(inputs), rtol=1e-4, atol=1e-5)
    assert not found.training


def test_a_file_with_other_layers_is_refused():
    weights = weights_of(NETWORKS["sdpcrown_cifar_cnn_c"].make(), by_layer=False)
    with pytest.raises(ValueError, match="layers with weights"):
        published_network("sdpcrown_cifar_cnn_a", weights)
