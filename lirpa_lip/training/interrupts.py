"""Ctrl-C and SIGTERM as wishes that a loop asks for at a moment of its own, when all it has is consistent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within the context SIGTERM raises KeyboardInterrupt, as SIGINT does, with the signal's number."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupts:
    """Within the ``with`` block the first signal is noted; a second one does what it always did.

    Handlers belong to the main thread; in another one nothing is noted and nothing changes.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            handler = self._before.get(number, signal.SIG_DFL)
            if callable(handler):
                handler(number, frame)
            elif handler != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        self.received = number

    def anywhere(self, processes: int, device: torch.device) -> int:
        """The signal, if this process or another has had one: all must stop at the same step. A collective call."""
        if processes == 1:
            return self.received
        noted = torch.tensor(self.received, device=device)
        torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX)
        return int(noted.item())
