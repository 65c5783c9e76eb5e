"""Specifications and verdicts."""

from __future__ import annotations

import pytest
import torch

from lirpa_lip.errors import ShapeError
from lirpa_lip.margin import certified, margin_specification


def test_rows_are_margins():
    logits = torch.randn(4, 5)
    labels = torch.tensor([0, 4, 2, 2])
    rows = margin_specification(labels, 5)
    margins = torch.einsum("bso,bo->bs", rows, logits)
    for b, y in enumerate(labels.tolist()):
        expected = torch.stack([logits[b, y] - logits[b, j] for j in range(5) if j != y])
        assert torch.allclose(margins[b], expected)


def test_wrong_labels():
    with pytest.raises(ShapeError):
        margin_specification(torch.tensor([5]), 5)


def test_ties_and_nan_are_not_certified():
    lower = torch.tensor([[0.1, 0.2], [0.0, 1.0], [torch.nan, 1.0], [-torch.inf, 1.0], [torch.inf, 1e-9]])
    assert certified(lower).tolist() == [True, False, False, False, True]
