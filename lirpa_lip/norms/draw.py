"""Where random starts come from, and how they come again.

A certificate's statement about chance is one about its start. No part of the problem may depend on that start, so it is
drawn from the operating system's entropy: a network, or an input, can be made for a known seed. The seed is kept with
the result, and given back it makes the same start.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

#: A seed, a generator, or torch's global generator.
Source: TypeAlias = int | torch.Generator | None

#: Seeds are non-negative integers of so many bits. (torch's generators on a CPU would use 32 of them.)
SEED_BITS = 63


_RUN: ContextVar[list[int] | None] = ContextVar("seed and draws of a run", default=None)


def fresh_seed() -> int:
    """A seed nobody could know; within `seeds_of` the next one of that run."""
    run = _RUN.get()
    if run is None:
        return secrets.randbits(SEED_BITS)
    run[1] += 1
    return next_seed(*run)


@contextmanager
def seeds_of(seed: int) -> Iterator[None]:
    """Within the context the starts of certificates are functions of ``seed`` and of how many there were before.

    For runs that are to be repeated, or gone on with: ``seed`` must itself have come from `fresh_seed`, after the
    network and the inputs were there, for the certificates' statement about chance to hold.
    """
    token = _RUN.set([seed, 0])
    try:
        yield
    finally:
        _RUN.reset(token)


def seed_from(generator: torch.Generator) -> int:
    """A seed drawn from a generator."""
    return int(torch.randint(2**SEED_BITS - 1, (), generator=generator, device=generator.device))


def next_seed(seed: int, index: int) -> int:
    """The seed of one of several independent draws under one seed."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]) >> (64 - SEED_BITS)


def another(source: Source) -> Source:
    """A source whose first draw is another one."""
    return next_seed(source, 1) if isinstance(source, int) else source


def normal(shape: Sequence[int], dtype: torch.dtype, device: torch.device, source: Source) -> Tensor:
    """Independent standard normal numbers; the same of one seed on one kind of device."""
    if not isinstance(source, int):
        return torch.randn(tuple(shape), dtype=dtype, device=device, generator=source)
    if device.type == "cuda":
        generator = torch.Generator(device).manual_seed(source)
        return torch.randn(tuple(shape), dtype=torch.float64, device=device, generator=generator).to(dtype)
    drawn = np.random.Generator(np.random.PCG64(source)).standard_normal(tuple(shape))
    return torch.from_numpy(drawn).to(device, dtype)
