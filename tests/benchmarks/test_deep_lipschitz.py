"""The benchmark of deep networks: the networks are the published ones, and its bounds hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def deep(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import deep_lipschitz

    return deep_lipschitz


def test_networks_are_drawn_as_the_authors_draw_them(deep):
    np.random.seed(77 * 10 + 9 * 5)
    sizes = [5, 10, 10, 10, 10, 2]
    for layer, before, after in zip(deep.network("relu", 10, 5)[::2], sizes[:-1], sizes[1:], strict=True):
        norm, weight = np.random.uniform(0.8, 2.5), np.random.randn(after, before)
        np.testing.assert_allclose(layer.weight.detach().numpy(), norm * weight / np.linalg.norm(weight, 2), rtol=1e-14)
        np.testing.assert_array_equal(layer.bias.detach().numpy(), np.random.randn(after))


@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_constants_hold_on_sampled_points(deep, activation):
    row = deep.measure(activation, 10, 10, 1.0, branch=1.0, limit=10)
    net, x = deep.network(activation, 10, 10), torch.tensor([deep.CENTRE], dtype=torch.float64)
    step = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = x + step / step.norm(dim=1, keepdim=True) * torch.rand(200, 1, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(net))(points)
    jacobians = jacobians.detach()
    seen = float(torch.linalg.matrix_norm(jacobians, 2).max())
    for name in ("local_lip", "clarke_jacobian", "branched"):
        assert float(row[name]) >= seen * (1 - 1e-4)  # the table has five digits
    assert float(row["lower"]) <= float(row["branched"]) * (1 + 1e-4)
