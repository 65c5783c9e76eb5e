"""Orthogonal starts, against singular values of the layers as dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lirpa_lip.training.models import build_model
from lirpa_lip.training.starts import orthogonal_start


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 5)),
        (nn.Conv2d(2, 9, 4, stride=2, padding=1), (2, 6, 6)),
        (nn.Conv2d(6, 4, 4, stride=2, padding=1), (6, 6, 6)),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (4, 4, 4)),
        (nn.Conv2d(3, 5, 1, stride=2), (3, 4, 4)),
        (nn.Linear(7, 5), (7,)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value).split("(")[0],
)
def test_layers_are_partial_isometries(layer: nn.Module, shape: tuple[int, ...]):
    """Every singular value of the dense matrix is 0 or 1."""
    torch.manual_seed(0)
    orthogonal_start(layer)
    numel = torch.Size(shape).numel()
    dense = layer(torch.eye(numel).reshape(numel, *shape)).detach().flatten(1)
    values = torch.linalg.svdvals(dense.double())
    assert values.max() == pytest.approx(1.0, abs=1e-5)
    assert ((values < 1e-5) | (values > 1 - 1e-5)).all()


def test_nothing_is_lost_where_channels_suffice():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 8, 4, stride=2, padding=1)
    orthogonal_start(layer)
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(layer(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


def test_seeded_and_different():
    def start(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build_model("cnn-tiny", (1, 8, 8), 10, "maxmin")
        orthogonal_start(model)
        return model[0].weight.detach()

    assert torch.equal(start(0), start(0)) and not torch.equal(start(0), start(1))
