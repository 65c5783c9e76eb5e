"""A run's log: CSV for reading, TensorBoard for looking, one line per epoch for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lirpa_lip.training.rows import replace_file

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
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
        replace_file(self.path, text.getvalue())  # whoever kills the run here loses nothing of the log
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
    """The complete rows of a ``metrics.csv`` (a killed process may leave half a row, a disk a damaged one)."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(line for line in file if "\0" not in line and "\ufffd" not in line))
    whole = [row for row in rows if all(row.get(name) not in (None, "") for name in COLUMNS)]
    return [row for row in whole if row["step"].isdecimal()]
