"""A pytest plugin for auto_LiRPA's own tests: our classes in place of theirs, no network, a time limit for each test.

Read from the environment: ``LIRPA_SUITE_CLASS`` ("plain" or "ours"), ``LIRPA_SUITE_TIMEOUT`` (seconds for a test),
``LIRPA_SUITE_BUDGET`` (seconds for all; what is left then is not run), ``LIRPA_SUITE_RESULT`` (the file to write).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = int(os.environ.get("LIRPA_SUITE_TIMEOUT", "60"))
BUDGET = float(os.environ.get("LIRPA_SUITE_BUDGET", "inf"))
STARTED = time.monotonic()
RESULT = Path(os.environ["LIRPA_SUITE_RESULT"])
#: By name; a run whose process died is continued with the tests that it had not begun.
FOUND: dict[str, dict[str, str]] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}


class _TookTooLong(BaseException):
    """Not an Exception: the code under test is not to catch it."""


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError("this run fetches nothing")


def pytest_configure() -> None:
    socket.socket.connect = socket.socket.connect_ex = _refuse  # type: ignore[method-assign, assignment]
    import lirpa_lip  # with both: it changes nothing of theirs, and lets torchvision be imported beside any torch

    if os.environ.get("LIRPA_SUITE_CLASS") != "ours":
        return
    import auto_LiRPA
    import auto_LiRPA.perturbations

    auto_LiRPA.BoundedModule = lirpa_lip.BoundedModule
    auto_LiRPA.PerturbationLpNorm = auto_LiRPA.perturbations.PerturbationLpNorm = lirpa_lip.PerturbationLpNorm


def _write() -> None:
    RESULT.write_text(json.dumps(FOUND, indent=1), encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if item.nodeid not in FOUND]


def pytest_runtest_logstart(nodeid: str) -> None:
    FOUND[nodeid] = {"outcome": "skipped", "message": "the process died"}
    _write()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if time.monotonic() - STARTED > BUDGET:
        pytest.skip("no time left")

    def ring(*_: Any) -> None:
        raise _TookTooLong

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(TIMEOUT)
    yield
    signal.alarm(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        text = str(report.longrepr).strip() if report.longrepr else ""
        errors = [line for line in text.splitlines() if line.startswith("E  ")]
        late = _TookTooLong.__name__ in text
        message = "took too long" if late else (errors or text.splitlines() or [""])[0].removeprefix("E").strip()
        FOUND[report.nodeid] = {"outcome": "skipped" if late else report.outcome, "message": message[:300]}


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        lines = str(report.longrepr).strip().splitlines()
        FOUND[report.nodeid] = {"outcome": "not collected", "message": lines[-1][:300]}


def pytest_sessionfinish() -> None:
    _write()
