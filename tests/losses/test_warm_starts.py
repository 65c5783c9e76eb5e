"""Estimates against dense norms while weights move, how often they are checked, that a GPU is not halted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lirpa_lip.losses.warm_norm import BLOCK, EVERY, WarmStarts, subspace_norm
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


def moving(steps: int, size: int = 60) -> list[Tensor]:
    """Nearly orthogonal matrices on their way, as certified training makes them: many values near the largest."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.nn.init.orthogonal_(torch.empty(size, size), generator=generator)
    found = []
    for _ in range(steps):
        weight = weight + 0.01 * torch.randn(size, size, generator=generator)
        found.append(weight)
    return found


def test_a_block_follows_where_one_vector_falls_behind() -> None:
    starts, one = WarmStarts(), torch.randn(1, 60, generator=torch.Generator().manual_seed(0))
    shares, shares_of_one = [], []
    for weight in moving(60):
        true = float(torch.linalg.matrix_norm(weight, 2))
        shares.append(float(starts.norm(0, DenseMap(weight), iterations=1)) / true)
        sigma, one = subspace_norm(DenseMap(weight), one)
        shares_of_one.append(float(sigma) / true)
    assert max(shares) <= 1 + 1e-5
    short, short_of_one = (sum(1 - share for share in found[10:]) for found in (shares, shares_of_one))
    assert short < short_of_one / 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (BLOCK, 5), (40, BLOCK + 9)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_of_any_size_settles_at_the_dense_norm(shape: tuple[int, int], masked: bool) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    columns, rows = (torch.rand(1, n, dtype=torch.float64, generator=generator) for n in shape[::-1])
    dense = weight if not masked else rows.reshape(-1, 1) * weight * columns
    starts, masks = WarmStarts(), (columns, rows) if masked else (None, None)
    for _ in range(300):
        found = starts.norm(0, DenseMap(weight), *masks, iterations=2, shared=True)
    true = torch.linalg.matrix_norm(dense, 2)
    torch.testing.assert_close(found.squeeze(), true, rtol=1e-6, atol=0)
    (expected,) = torch.autograd.grad(true, weight)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), weight)[0], expected, rtol=1e-3, atol=1e-4)


def test_repeated_values_and_dead_maps() -> None:
    starts = WarmStarts()
    assert float(starts.norm(0, DenseMap(3 * torch.eye(20)))) == pytest.approx(3)
    assert float(starts.norm(1, DenseMap(torch.zeros(4, 6)))) == 0
    half = torch.diag(torch.cat([torch.ones(2), torch.zeros(18)]))  # fewer directions than the block
    assert float(starts.norm(2, DenseMap(half))) == pytest.approx(1)


def test_eval_mode_settles_and_keeps_its_block() -> None:
    starts, weight = WarmStarts(), moving(1)[0]
    starts.norm(0, DenseMap(weight), iterations=1)
    before = {name: tensor.clone() for name, tensor in starts.state_dict().items()}
    starts.eval()
    first, second = (starts.norm(0, DenseMap(weight), iterations=1) for _ in range(2))
    assert torch.equal(first, second)
    assert float(first) > 0.99 * float(torch.linalg.matrix_norm(weight, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in starts.state_dict().items())


def test_a_shared_norm_reads_nothing_back() -> None:
    starts = WarmStarts()
    starts.norm(0, MAP)
    with Halts() as halts:
        starts.norm(0, MAP)
    assert halts.count == 0
