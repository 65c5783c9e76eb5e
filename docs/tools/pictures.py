"""Pictures of results, drawn from the CSV files of benchmarks/results at every build, as the tables are made."""

from __future__ import annotations

from pathlib import Path

import figures
from fragments import RESULTS, read
from lib import norm_tools

#: What `write` makes, by name.
NAMES = ("verify.png", "training.png", "norms_error_4c3f.png", "norms_error_6c2f.png", "norms_error_8c2f.png")


def write(folder: Path) -> None:
    """Draws every picture that is older than the CSV file it shows."""
    results = {name: RESULTS / f"{name}.csv" for name in ("verify", "train_cpu", "norms")}
    newest = max(path.stat().st_mtime for path in results.values())
    if all((folder / name).is_file() and (folder / name).stat().st_mtime > newest for name in NAMES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    figures.draw_verification(read(results["verify"]), folder / "verify.png")
    figures.draw_training(read(results["train_cpu"]), folder / "training.png")
    norm_tools.plot(results["norms"], folder)
