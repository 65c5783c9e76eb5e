"""What do `import lirpa_lip` and the command line's help cost, beside `import torch` and auto_LiRPA's own import?

One CSV row per call: processor seconds, medians over fresh processes that take turns. ``times_base`` is over importing
torch and auto_LiRPA alone.

    python benchmarks/imports.py --repeats 7
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import click
from lib.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "imports.csv"
# auto_LiRPA as the library imports it, without the rest of the package
BASE = f"""
import sys, types
import torch
package = types.ModuleType("lirpa_lip")
package.__path__ = [{str(ROOT / "lirpa_lip")!r}]
sys.modules["lirpa_lip"] = package
import lirpa_lip.autolirpa.compat
"""
CALLS = {
    "torch and auto_LiRPA": ("-c", BASE),
    "import lirpa_lip": ("-c", "import lirpa_lip"),
    "lirpa-lip --help": ("-m", "lirpa_lip_cli", "--help"),
    "lirpa-lip train --help": ("-m", "lirpa_lip_cli", "train", "--help"),
    "lirpa-lip verify --help": ("-m", "lirpa_lip_cli", "verify", "--help"),
}


def seconds(*arguments: str) -> float:
    """Processor time of one fresh interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command()
@click.option("--repeats", default=5, type=click.IntRange(min=1))
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path))
def main(repeats: int, out: Path) -> None:
    found: dict[str, list[float]] = {name: [] for name in CALLS}
    for _ in range(repeats + 1):
        for name, arguments in CALLS.items():
            found[name].append(seconds(*arguments))
    table = Table(out, ("call", "repeats", "cpu_seconds", "times_base"))
    base = statistics.median(found["torch and auto_LiRPA"][1:])
    for name, taken in found.items():
        value = statistics.median(taken[1:])  # the first fills the caches of files
        click.echo(f"{name:24} {value:6.2f} s  {value / base:5.2f} x")
        table.append(
            {"call": name, "repeats": repeats, "cpu_seconds": f"{value:.3f}", "times_base": f"{value / base:.3f}"}
        )


if __name__ == "__main__":
    main()
