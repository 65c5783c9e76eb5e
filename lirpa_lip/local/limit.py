"""When descents and refinements are to end with what they have.

Every step of a descent has a valid bound, and what is not refined stays valid: so these may end at any time. Who has a
time limit says so once, around the call, and loops ask between steps. A single pass, and norms, are not interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_late: ContextVar[Callable[[], bool] | None] = ContextVar("late", default=None)


@contextmanager
def until(late: Callable[[], bool]) -> Iterator[None]:
    """Within it, `is_late` is what ``late`` says, or what a limit around it does."""
    outer = _late.get()
    token = _late.set(late if outer is None else lambda: late() or outer())
    try:
        yield
    finally:
        _late.reset(token)


def is_late() -> bool:
    """Whether to take no further step."""
    late = _late.get()
    return late is not None and late()
