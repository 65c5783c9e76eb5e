"""The same bounds and losses on a GPU as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from networks.classifiers import SHAPE, small_network

from lirpa_lip.losses import BOUNDS, LOSSES, make_bound, make_loss

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_agree(name: str):
    x, labels = torch.rand(4, *SHAPE, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    model = small_network()
    there = copy.deepcopy(model).cuda()
    host, device = make_bound(name, model, x, iterations=5), make_bound(name, there, x.cuda(), iterations=5)
    for _ in range(3):
        a, b = host(x, 0.2, labels), device(x.cuda(), 0.2, labels.cuda())
    torch.testing.assert_close(a.pair_lipschitz, b.pair_lipschitz.cpu(), rtol=1e-6, atol=1e-9)
    for loss in LOSSES:
        value = make_loss(loss)(b.logits, b.pair_lipschitz, 0.2, labels.cuda(), b.region)
        expected = make_loss(loss)(a.logits, a.pair_lipschitz, 0.2, labels, a.region)
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-6, atol=1e-9)
        value.backward(retain_graph=True)
    assert all(torch.isfinite(p.grad).all() for p in there.parameters() if p.grad is not None)
