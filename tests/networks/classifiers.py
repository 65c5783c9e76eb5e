"""Small networks and oracles that several tests of the bounds share."""

from __future__ import annotations

import torch
from sampling import ball_points
from torch import Tensor, nn

from lirpa_lip.local.layers import Layers
from lirpa_lip.local.linearised import affine_map
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.training.models import build_model

SHAPE = (2, 6, 6)


def small_network(activation: str = "clipped_relu", seed: int = 0, normalise: bool = True) -> nn.Module:
    """Two convolutions and two linear layers on (2, 6, 6) images, float64, with nonzero biases."""
    torch.manual_seed(seed)
    statistics = ([0.4, 0.5], [0.3, 0.2]) if normalise else (None, None)
    model = build_model("cnn-tiny", SHAPE, 5, activation, statistics[0], std=statistics[1]).double()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.bias, 0.0, 0.3)
    return model


def worst_rate(model: nn.Module, x: Tensor, labels: Tensor, eps: float, count: int = 100) -> Tensor:
    """Largest sampled |Δ(logit_y − logit_j)| / ‖Δx‖ from the centre, (batch, classes)."""
    moved = ball_points(x, eps, count)

    def margins(inputs: Tensor) -> Tensor:
        logits = model(inputs)
        return logits.gather(1, labels[:, None]) - logits

    changes = torch.stack([margins(point) for point in moved]) - margins(x)
    distance = (moved - x).flatten(2).norm(dim=2).unsqueeze(2)
    return (changes.abs() / distance).amax(0)


def dense_product(graph: NetworkGraph, layers: Layers | None = None) -> Tensor:
    """Π ‖S_k^½ W_k S_{k−1}^½‖ over the layers of a chain but the last, by float64 SVDs of dense matrices, (batch,).

    S is a layer's largest slope, of a clipped sort behind the sort; without layers it is one everywhere.
    """
    rate, before = torch.ones(1, dtype=torch.float64), graph.input
    columns: Tensor | None = None
    inner = {node.isometry_of.fold: node for node in graph.activations if node.isometry_of is not None}
    for node in graph.activations:
        if node.name in inner:
            continue
        target = node.parents[0] if node.isometry_of is None else node.isometry_of.source
        matrix = affine_map(graph, before, target).dense().double().unsqueeze(0)
        matrix = matrix if columns is None else matrix * columns.flatten(1).unsqueeze(1)
        if layers is not None:
            columns = rows = layers[node.name].slopes.magnitude.sqrt()
            if node.isometry_of is not None:
                fold = layers[node.isometry_of.fold].slopes
                rows = node.isometry_of.pull_back(fold.centre, fold.stable, rows)
            matrix = matrix * rows.flatten(1).unsqueeze(2)
        rate, before = rate * torch.linalg.matrix_norm(matrix, 2), node.name
    return rate
