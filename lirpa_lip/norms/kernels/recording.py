"""Steps recorded once as a CUDA graph and replayed, so that a step costs one launch where it had a dozen.

``LIRPA_LIP_CUDA_GRAPHS=1`` turns it on. It is off otherwise: recording costs some steps' time itself, and pays only
where launches, not arithmetic, are what a step takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

#: Takes a function of no arguments that works in place on tensors it holds on to, and calls it once; what it returns
#: does the same again, at every call.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]

_forced: list[Recorder | None] = []


def recorder(device: torch.device) -> Recorder | None:
    """How steps are recorded on this device; ``None`` where they are not."""
    if _forced:
        return _forced[-1]
    wanted = device.type == "cuda" and os.environ.get("LIRPA_LIP_CUDA_GRAPHS") == "1"
    return cuda_graph if wanted else None


@contextmanager
def use_recorder(chosen: Recorder | None) -> Iterator[None]:
    """Within the context, steps are recorded in this way, or not at all."""
    _forced.append(chosen)
    try:
        yield
    finally:
        _forced.pop()


def cuda_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Calls the function on a stream of its own, as a capture asks for, so that kernels compile; then records it.

    Without ``torch.cuda.graph``, which empties the allocator's cache every time.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        graph.capture_begin(capture_error_mode="thread_local")  # another thread may be loading data
        try:
            function()  # recorded, not run
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay
