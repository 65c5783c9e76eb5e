"""`make bench`, benchmarks/README.md and the folder of scripts name the same ones."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)\.py` \|.*?\| `results/(\w+)\.csv` \|", README, re.MULTILINE)


def test_make_bench_runs_the_scripts_of_the_table_in_its_order() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (names,) = re.findall(r"^BENCHMARKS \?= (.*)$", text, re.MULTILINE)
    assert names.split() == [name for name, _ in ROWS]


def test_every_script_is_in_the_table_or_among_those_that_measure_nothing() -> None:
    (others,) = re.findall(r"^No measurements: (.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    named = [name for name, _ in ROWS] + re.findall(r"`(\w+)\.py`", others.replace("`verify.py`", ""))
    assert sorted(named) == sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


def test_every_row_writes_a_file_that_is_there_and_every_file_has_a_row() -> None:
    there = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.csv")}
    assert all(name == written for name, written in ROWS)
    assert {written for _, written in ROWS} == there - {"board"}  # which contribute.py writes


def test_make_bench_goes_on_after_a_failure_and_names_it(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "ran $1"\ncase "$1" in *norms*) exit 3;; esac\n')
    fake.chmod(0o755)
    call = ["make", "-s", "-o", "setup", "bench", f"PY={fake}", "BENCHMARKS=imports norms scale"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    ran = re.findall(r"^ran benchmarks/(\w+)\.py$", done.stdout, re.MULTILINE)
    assert ran == ["imports", "norms", "scale"] and "not measured: norms\n" in done.stdout and done.returncode != 0
