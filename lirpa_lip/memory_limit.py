"""How much memory a call may take: batches that do not fit are halved, until one sample is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError
from lirpa_lip.memory import is_out_of_memory

Result = TypeVar("Result")

_UNITS = {"": 1, "b": 1} | {
    f"{p}{b}b": base**k for k, p in enumerate("kmgt", 1) for b, base in (("", 1000), ("i", 1024))
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
#: Less is not worth trying: a network of a few neurons takes as much.
_LEAST = 16 << 20


def parse_bytes(value: int | str) -> int:
    """Bytes, from a whole number or text such as ``"4GiB"``, ``"500 MB"``.

    Raises:
        ConfigError: it is neither, or less than 16 MiB.
    """
    found = _SIZE.fullmatch(str(value)) if not isinstance(value, (bool, float)) else None
    if found is None or found[2].lower() not in _UNITS:
        raise ConfigError(f"max_memory={value!r} is no size; write a number of bytes, or a size such as 4GiB or 500MB.")
    size = int(float(found[1]) * _UNITS[found[2].lower()])
    if size < _LEAST:
        raise ConfigError(f"max_memory={value!r} is less than {_LEAST >> 20} MiB, which no bound can do with.")
    return size


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, ``None`` where the system does not say: on a CPU what Linux calls available,
    within the limit of the process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free, group = _said_by_linux("/proc/meminfo", "MemAvailable"), Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text()) if limit != "max" else 0
    except (OSError, ValueError):
        limit = "max"
    return free if free is None or limit == "max" else max(0, min(free, int(limit) - used))


@contextmanager
def memory_limit(max_memory: int | str | None, device: torch.device, processes: int = 1) -> Iterator[None]:
    """Within it this process gets at most so much more on the device; what exceeds that is PyTorch's out-of-memory
    error, which batches are halved at, not the end of the process.

    On a CPU by ``RLIMIT_DATA``, where there is one (Linux); a limit that is tighter already stays.

    Args:
        max_memory: as for `parse_bytes`; None for half of what is free, divided by the number of ``processes``.

    Raises:
        ConfigError: it is no size.
    """
    if max_memory is not None:
        limit: int | None = parse_bytes(max_memory)
    else:
        free = free_memory(device)
        limit = None if free is None else free // 2 // processes
    if limit is None:
        yield
        return
    with _on_gpu(limit, device) if device.type == "cuda" else _of_process(limit):
        yield


@contextmanager
def _on_gpu(limit: int, device: torch.device) -> Iterator[None]:
    total, held = torch.cuda.get_device_properties(device).total_memory, torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + limit) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def _of_process(limit: int) -> Iterator[None]:
    used = _said_by_linux("/proc/self/status", "VmData")  # what RLIMIT_DATA counts
    if used is None:
        yield
        return
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    asked = used + limit
    tighter = any(known != resource.RLIM_INFINITY and known <= asked for known in (before, hard))
    if not tighter:
        resource.setrlimit(resource.RLIMIT_DATA, (asked, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _said_by_linux(file: str, name: str) -> int | None:
    """Bytes that a line ``name: … kB`` states; None on other systems."""
    try:
        (line,) = [text for text in Path(file).read_text().splitlines() if text.startswith(f"{name}:")]
    except (OSError, ValueError):
        return None
    return int(line.split()[1]) << 10


class Halving:
    """Calls on consecutive parts of a batch; one that memory does not suffice for is done again in halves, and what
    comes later is as small."""

    def __init__(self) -> None:
        self._most: int | None = None

    def __call__(self, call: Callable[..., Result], *batch: Tensor) -> list[Result]:
        """The results of ``call(place, *part)``, ``place`` being the part's first sample.

        Raises:
            RuntimeError, MemoryError: there is not enough for a single sample.
        """
        count, place, found = len(batch[0]), 0, []
        while place < count:
            size = min(self._most or count, count - place)
            try:
                found.append(call(place, *(t[place : place + size] for t in batch)))
                place += size
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self._most = (size + 1) // 2
        return found
