"""Memory that a process has had stays its own: large tensors need not be asked for, and cleared, again and again."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt(3), as in malloc.h."""

SETTINGS = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20))


def is_out_of_memory(error: Exception) -> bool:
    """Also PyTorch's own, which has a class on GPUs, and is a RuntimeError of its allocator on CPUs."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in said or "bad_alloc" in said)


def keep_freed_memory() -> bool:
    """From now on what is freed on the CPU is kept for the next tensor, as on a GPU; says whether that could be had.

    By default glibc asks the kernel for every block above 32 MiB and gives it back when it is freed; the kernel clears
    its pages each time. Bounds make and drop such tensors all the time: that took 12 to 41 % of their time on 4C3F
    (``benchmarks/memory.py``). The price is that a process keeps the largest memory it has needed until it ends.

    The commands call it; in a program of your own call it first, if nothing else needs the memory in between. It
    changes the whole process and cannot be taken back. Nothing is done, and False returned, where the C library is not
    glibc, or where the user has set ``MALLOC_…`` or ``GLIBC_TUNABLES`` in the environment.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if not sys.platform.startswith("linux"):
        return False
    process = ctypes.CDLL(None)
    if not (hasattr(process, "gnu_get_libc_version") and hasattr(process, "mallopt")):
        return False
    taken = [process.mallopt(parameter, value) == 1 for parameter, value in SETTINGS]
    return all(taken)
