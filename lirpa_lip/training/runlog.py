"""A run's log: CSV for reading, TensorBoard for looking, one line per epoch for the terminal."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "split", "loss", "clean", "certified_estimate", "eps", "kappa", "lr", "seconds")
"""Accuracies are fractions of 1. ``certified_estimate`` rests on norms from below: it is no certificate."""


class RunLog:
    """Appends rows to ``metrics.csv`` and scalars to ``tensorboard/``.

    Args:
        folder: of the run.
        first_step: rows after this step are removed first: they are of a run that was killed and is resumed earlier.
        tensorboard: whether to write TensorBoard files as well.
    """

    def __init__(self, folder: Path, first_step: int = 0, tensorboard: bool = True) -> None:
        self.path = folder / "metrics.csv"
        kept = [row for row in read_log(self.path) if int(row["step"]) <= first_step] if self.path.exists() else []
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes one row, flushed at once, so that what is on disk is never behind a checkpoint."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(dict(row))
        if self._writer is not None:
            for name, value in row.items():
                if name not in ("step", "epoch", "split"):
                    self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """The complete rows of a ``metrics.csv`` (a killed process may leave half a row)."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row.get(name) not in (None, "") for name in COLUMNS)]
