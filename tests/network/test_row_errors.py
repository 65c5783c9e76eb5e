"""The rounding of rows: what the quick sums leave out, they round up."""

from __future__ import annotations

import pytest
import torch

from lirpa_lip.network.rounding import RowErrors


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-170])
def test_quick_sums_are_no_smaller(samples: int, scale: float):
    generator = torch.Generator().manual_seed(0)
    slack = {name: torch.rand(samples, 2, 5, generator=generator, dtype=torch.float64) * 1e-12 for name in "ab"}
    size = {name: torch.linalg.vector_norm(t.flatten(1), dim=1, keepdim=True) for name, t in slack.items()}
    exact, quick = RowErrors(slack, samples), RowErrors(slack, samples, size)
    for name in "ab":
        rows = torch.randn(samples * 4, 2, 5, generator=generator, dtype=torch.float64) * scale
        exact.visit(name, rows)
        quick.visit(name, rows)
    assert exact.total.shape == quick.total.shape == (samples, 4)
    assert (
        (exact.total > 0).all()
        and (quick.total >= exact.total).all()
        and (quick.total <= 10 * exact.total + 1e-160).all()
    )
    exact.visit("unknown", rows)
    assert (quick.total >= exact.total).all()
