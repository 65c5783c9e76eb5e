"""What a call may take: a limit that holds, sizes as they are written, batches that are halved."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lirpa_lip.memory_limit import Halving, free_memory, memory_limit, parse_bytes

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts all data on Linux alone")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 << 30), ("500 MB", 500 * 10**6), (1 << 30, 1 << 30), ("1.5gib", 3 << 29), ("20000000b", 20_000_000)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


def limits() -> tuple[int, int]:
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)


@linux
def test_the_limit_holds_and_goes_away():
    before = limits()
    with memory_limit("100MiB", CPU):
        assert torch.ones(10 << 18).sum() == 10 << 18
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.ones(200 << 18)
    assert limits() == before and torch.ones(200 << 18).sum() == 200 << 18


@linux
def test_by_default_half_of_what_is_free():
    free = free_memory(CPU)
    assert free is not None and 0 < free < 1 << 50
    before = limits()
    with memory_limit(None, CPU):
        assert limits()[0] > 0 and limits() != before
    assert limits() == before


@linux
def test_a_tighter_limit_stays():
    code = """
import resource, torch
from lirpa_lip.memory_limit import memory_limit
resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, resource.RLIM_INFINITY))
with memory_limit("1000GB", torch.device("cpu")):
    print(resource.getrlimit(resource.RLIMIT_DATA)[0] == 8 << 30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


@linux
def test_a_network_is_certified_in_little_memory():
    """The whole batch at once takes more than there is; the verdicts are those of one sample at a time."""
    code = """
import torch
from torch import nn
import lirpa_lip
from lirpa_lip import certifying
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 3)).eval()
x = torch.rand(40, 20)
options = dict(eps=0.05, method="crown", radius_steps=0, batch_size=40)
made, Halving = [], certifying.Halving
certifying.Halving = lambda: made.append(Halving()) or made[-1]
small = lirpa_lip.certify(model, x, max_memory="250MiB", **options)
whole = lirpa_lip.certify(model, x, **options)
print(sum(a.certified == b.certified for a, b in zip(small, whole)), len(small), *(h._most for h in made))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    same, count, small, whole = done.stdout.split()
    assert count == same == "40" and int(small) < 40 and whole == "None"


def test_halving_remembers_and_keeps_the_order():
    halving, tried = Halving(), []

    def call(place, x):
        tried.append(len(x))
        if len(x) > 3:
            raise MemoryError
        return [(place, v) for v in x.tolist()]

    x = torch.arange(10)
    found = [pair for part in halving(call, x) for pair in part]
    assert [v for _, v in found] == list(range(10)) and tried == [10, 5, 3, 3, 3, 1]
    assert found[3] == (3, 3) and found[9] == (9, 9)
    tried.clear()
    halving(call, x[:4])
    assert tried == [3, 1]


def test_other_errors_are_not_halved():
    def call(place, x):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Halving()(call, torch.arange(4))
    with pytest.raises(MemoryError):
        Halving()(lambda place, x: (_ for _ in ()).throw(MemoryError()), torch.arange(4))
