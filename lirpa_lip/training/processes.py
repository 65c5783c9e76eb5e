"""One process or several: who we are, and on which device."""

from __future__ import annotations

import atexit
import re

import torch
from accelerate import Accelerator, PartialState

_LOST = re.compile(r"gloo|nccl|connection|peer|timed out", re.IGNORECASE)
"""What messages of torch.distributed hold when a process has gone."""


def make_accelerator() -> Accelerator:
    """Accelerate on CUDA where there is one, else on the CPU, several processes talking over gloo."""
    atexit.unregister(leave)
    atexit.register(leave)
    return Accelerator(cpu=not torch.cuda.is_available())


def process_state() -> PartialState:
    """The same, without anything that training needs."""
    atexit.unregister(leave)
    atexit.register(leave)
    return PartialState(cpu=not torch.cuda.is_available())


def leave() -> None:
    """Ends the conversation with the other processes: left to the interpreter's own end, its threads may abort a run
    that has succeeded."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def process_count() -> int:
    """Number of processes that work together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def lost_process(error: BaseException) -> bool:
    """Whether an error is what the others see when one process of a run dies."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
