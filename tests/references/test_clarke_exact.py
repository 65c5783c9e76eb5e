"""The norms of one certificate: settings reach the solver, and delta is not overdrawn."""

from __future__ import annotations

import pytest
import torch

from lirpa_lip import LocalLipConfig
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.norms.linear_map import DenseMap


def test_norm_tolerance_decides_how_near_a_bound_is():
    torch.manual_seed(0)
    weight = torch.randn(70, 90, dtype=torch.float64)
    exact = torch.linalg.matrix_norm(weight, 2)
    found = {}
    for tolerance in (0.3, 1e-3):
        config = LocalLipConfig(certificate="probabilistic", norm_tolerance=tolerance)
        found[tolerance] = NormBudget(config, 1)(DenseMap(weight)) / exact - 1
        assert 0 <= found[tolerance] <= tolerance
    assert found[1e-3] < 0.1 * found[0.3]


def test_more_norms_than_planned_are_refused():
    oracle = NormBudget(LocalLipConfig(), 1)
    oracle(DenseMap(torch.eye(2)))
    with pytest.raises(RuntimeError, match="delta"):
        oracle(DenseMap(torch.eye(2)))
