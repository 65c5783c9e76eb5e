"""One process at a time in a run's folder: a lock that its owner's death, however sudden, releases."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from lirpa_lip.errors import LockedError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


class FolderLock:
    """Holds ``folder/.lock``, which says who has it: process id, host.

    On one host the operating system keeps the lock, so one left by a process that was killed counts for nothing. Of
    another host nothing is known: its lock must be removed by hand. A process may take a lock that it holds already.

    Raises:
        LockedError: another process works in the folder.
    """

    _held: dict[Path, int] = {}  # noqa: RUF012  (of the whole process)

    def __init__(self, folder: Path, wanted: bool = True) -> None:
        self.folder, self.path, self.wanted = folder, folder.resolve() / NAME, wanted
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        if not self.wanted:
            return self
        if self.path not in self._held:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._take()
        self._held[self.path] = self._held.get(self.path, 0) + 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.wanted:
            return
        self._held[self.path] -= 1
        if self._held[self.path] == 0:
            del self._held[self.path]
        if self._descriptor is not None:
            # emptied, not removed: another process may be waiting with the same file open
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self) -> int:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked, owner = _system_lock(descriptor), _owner(descriptor)
            if not locked:
                raise LockedError(str(self.folder), _described(owner))
            if owner and (owner.get("host") != socket.gethostname() or (fcntl is None and _alive(owner.get("pid")))):
                raise LockedError(str(self.folder), _described(owner), str(self.path))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _system_lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what the file says must do
        return True
    return True


def _owner(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(descriptor, 4096) or b"{}")
    except ValueError:  # half written by a process that was killed
        return {}
    return found if isinstance(found, dict) else {}


def _described(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except OSError:
        return True
    return True
