"""Benchmarks that take oracles or networks from the tests start as commands, with no tests on the path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAKING = [
    path
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    for package in re.findall(r"^from (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    if package != "lib" and (ROOT / "tests" / package).is_dir()
]


@pytest.mark.parametrize("path", TAKING, ids=lambda path: path.stem)
def test_it_starts(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(path), "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage" in done.stdout, done.stderr


def test_some_do() -> None:
    assert {"clarke", "deep_lipschitz"} <= {path.stem for path in TAKING}
