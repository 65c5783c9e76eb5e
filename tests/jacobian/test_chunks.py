"""Clarke Jacobians of wide layers are taken in chunks: no tensor grows with the number of neurons squared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.jacobian import forward
from lirpa_lip.results import LipschitzResult

WIDTH = 60


class Largest(TorchDispatchMode):
    """The most bytes that any operation's result holds of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return found


def constants(norm: float) -> tuple[LipschitzResult, int]:
    torch.manual_seed(0)
    layers = (nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
    net = nn.Sequential(*layers).double()
    x = torch.zeros(1, 4, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    region = (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=1.0)),)  # wide: nearly every neuron is open
    with Largest() as largest:
        found = bounded.local_lipschitz(region, method="clarke-jacobian", norm=norm)
    return found, largest.bytes


@pytest.mark.parametrize("norm", [float("inf"), 2])
def test_chunks_hold_less_and_say_the_same(norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, most = constants(norm)
    weight = 8 * WIDTH * WIDTH
    monkeypatch.setattr(forward, "ROW_ELEMENTS", 8 * WIDTH)
    parts, most_of_parts = constants(norm)
    torch.testing.assert_close(parts.upper, whole.upper, rtol=1e-9, atol=0)
    assert parts.upper >= parts.lower
    assert most >= 3 * weight and most_of_parts <= 1.25 * weight, (most / weight, most_of_parts / weight)
