"""Pictures of results, drawn from the CSV files of benchmarks/results at every build, as the tables are made."""

from __future__ import annotations

from pathlib import Path

import figures
from fragments import RESULTS, read
from lib import norm_tools

#: What `write` makes, by name.
NAMES = ("verify.png", "training.png", "norms_error_4c3f.png", "norms_error_6c2f.png", "norms_error_8c2f.png")


def write(folder: Path) -> None:
    """Draws the pictures where one is older than the CSV files or than what draws them."""
    results = {name: RESULTS / f"{name}.csv" for name in ("verify", "train_cpu", "norms")}
    drawn_by = [Path(module.__file__) for module in (figures, norm_tools)]
    newest = max(path.stat().st_mtime for path in (*results.values(), *drawn_by))
    if all((folder / name).is_file() and (folder / name).stat().st_mtime > newest for name in NAMES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    figures.draw_verification(read(results["verify"]), folder / "verify.png")
    figures.draw_training(read(results["train_cpu"]), folder / "training.png")
    norm_tools.plot(results["norms"], folder)
