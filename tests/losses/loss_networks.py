"""Small networks and oracles that several tests of the bounds share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lirpa_lip.losses.activations import masks_of
from lirpa_lip.losses.stages import stages_of
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


def points_in_ball(x: Tensor, eps: float, count: int) -> Tensor:
    """(count, *x.shape): random directions, half of them on the sphere."""
    directions = torch.randn(count, *x.shape, dtype=x.dtype)
    norms = directions.flatten(2).norm(dim=2).reshape(count, len(x), *[1] * (x.ndim - 1))
    radii = torch.rand(count, 1, *[1] * (x.ndim - 1), dtype=x.dtype)
    radii[: count // 2] = 1.0
    return x + eps * radii * directions / norms


def worst_rate(model: nn.Module, x: Tensor, labels: Tensor, eps: float, count: int = 100) -> Tensor:
    """Largest sampled |Δ(logit_y − logit_j)| / ‖Δx‖ from the centre, (batch, classes)."""
    moved = points_in_ball(x, eps, count)

    def margins(inputs: Tensor) -> Tensor:
        logits = model(inputs)
        return logits.gather(1, labels[:, None]) - logits

    changes = torch.stack([margins(point) for point in moved]) - margins(x)
    distance = (moved - x).flatten(2).norm(dim=2).unsqueeze(2)
    return (changes.abs() / distance).amax(0)


def dense_product(model: nn.Module, sample: Tensor, intervals: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """Π ‖S W S‖ over the stages but the last, by float64 SVDs of dense matrices, (batch,); masks from intervals."""
    stages = stages_of(model, sample)
    product, columns = torch.ones(1, dtype=torch.float64), None
    for index, stage in enumerate(stages[:-1]):
        matrix = stage.linear_map().dense().double().unsqueeze(0)
        rows = None
        if columns is not None:
            matrix = matrix * columns.flatten(1).unsqueeze(1)
        if intervals is not None:
            rows, columns = masks_of(stage.activation, *intervals[index])
            matrix = matrix if rows is None else matrix * rows.flatten(1).unsqueeze(2)
        product = product * torch.linalg.matrix_norm(matrix, 2)
    return product
