"""What a run shows: nothing, or a bar with a line per epoch on a terminal, and off it a line now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TextIO

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows nothing; the base of what shows something."""

    def start(self, total: int, done: int = 0) -> None: ...

    def advance(self) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def stop(self) -> None: ...


class RichProgress(Progress):
    """A bar with the time left (on a terminal), and one line per validated epoch (everywhere)."""

    def start(self, total: int, done: int = 0) -> None:
        from rich.console import Console

        self.console, self.pace = Console(), Pace(total, done)
        self._shown = counted(self.console, "training", "steps", self.pace)
        self._advance = self._shown.__enter__()

    def advance(self) -> None:
        self._advance(1)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.console.print(
            f"epoch {row['epoch']:5.1f}  clean {row['clean']:6.1%}  certified (estimate) "  # in 80 columns
            f"{row['certified_estimate']:6.1%} at ε {row['eps']:.4g}  left {self.pace.left}",
            highlight=False,
        )

    def stop(self) -> None:
        self._shown.__exit__(None, None, None)


class Pace:
    """How much is done of how much, and what is left of the time at the pace so far."""

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self._first, self._clock = total, done, done, clock
        self._begun = clock()

    def add(self, count: int) -> None:
        self.done += count

    @property
    def left(self) -> str:
        """As in 0:12:05, or "?" before the first step."""
        made = self.done - self._first
        if made <= 0:
            return "?"
        seconds = (self._clock() - self._begun) / made * (self.total - self.done)
        return str(timedelta(seconds=round(seconds)))


@contextmanager
def counted(console: Any, verb: str, things: str, pace: Pace) -> Iterator[Callable[[int], None]]:
    """Gives the function that is called with how many more are done: a bar, or off a terminal a line now and then.

    The first line comes with the first call, others at most every half minute, the last with the last call.
    """
    if not console.is_terminal:
        yield _lines(partial(console.print, highlight=False), verb, things, pace)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(verb, total=pace.total, completed=pace.done)

        def advance(count: int) -> None:
            pace.add(count)
            bar.advance(task, count)

        yield advance


def said_late(verb: str, things: str, pace: Pace, stream: TextIO, after: float = 2.0) -> Callable[[int], None]:
    """The function that is called with how many more are done; nothing is shown of what takes less than ``after``
    seconds. On a terminal one line that changes, elsewhere one now and then; no package is needed."""
    if not stream.isatty():
        return _lines(partial(print, file=stream, flush=True), verb, things, pace, after=after)

    def say(line: str) -> None:
        print(f"\r{line:<70}", end="\n" if pace.done >= pace.total else "", file=stream, flush=True)

    return _lines(say, verb, things, pace, after=after, between=0.0)


def _lines(
    say: Callable[[str], None],
    verb: str,
    things: str,
    pace: Pace,
    *,
    after: float = 0.0,
    between: float = _SECONDS_BETWEEN_LINES,
) -> Callable[[int], None]:
    begun, last = time.monotonic(), -math.inf

    def advance(count: int) -> None:
        nonlocal last
        pace.add(count)
        now = time.monotonic()
        if now - begun >= after and (now - last >= between or pace.done >= pace.total):
            say(f"{verb}: {pace.done} of {pace.total} {things}, left {pace.left}")
            last = now

    return advance
