"""How often estimates are checked against better ones, that a checkpoint remembers it, and that a GPU is not halted."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lirpa_lip.losses.warm_norm import EVERY, WarmStarts
from lirpa_lip.norms.linear_map import DenseMap

MAP = DenseMap(torch.randn(6, 9, generator=torch.Generator().manual_seed(0)))
ROWS = (torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) > 0.4).float()


def checked(starts: WarmStarts, calls: int) -> list[int]:
    """The calls, counted from 0, at which better estimates were made."""
    found = []
    for call in range(calls):

        def refined(call: int = call) -> torch.Tensor:
            found.append(call)
            return torch.ones(4)

        starts.shortfall(0, torch.ones(4), refined)
    return found


class Halts(TorchDispatchMode):
    """Counts what makes the CPU wait for values: numbers and truths read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")
        return function(*args, **(kwargs or {}))


def test_checks_become_rare() -> None:
    assert checked(WarmStarts(), 2 * EVERY + 1) == [0, 1, 2, 4, 8, 16, 32, EVERY, 2 * EVERY]


def test_a_checkpoint_remembers_the_calls() -> None:
    starts, other = WarmStarts(), WarmStarts()
    checked(starts, 5)
    checked(other, 40)  # its own count must not outlive the checkpoint
    other.load_state_dict(starts.state_dict())
    assert checked(other, 5) == [3]  # the eighth call in all


def test_a_step_reads_nothing_back() -> None:
    starts = WarmStarts()
    for _ in range(3):
        starts.norm(0, MAP, None, ROWS)
    with Halts() as halts:
        starts.norm(0, MAP, None, ROWS)
    assert halts.count == 0
    with Halts() as halts:
        float(starts.norm(0, MAP, None, ROWS)[0])
    assert halts.count == 1
