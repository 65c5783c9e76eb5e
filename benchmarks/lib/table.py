"""A CSV file of measurements: one row each, stamped with hardware, versions and date as it is written."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .hardware import COLUMNS, stamp

Row = Mapping[str, object]


def read(path: Path) -> list[dict[str, str]]:
    """All rows, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Table:
    """Appends rows to a CSV file, each on the disk before the next is measured.

    Args:
        path: of the file; it and its folder are made when the first row comes.
        columns: before those of the stamp; a value that a row lacks stays empty.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, (*columns, *COLUMNS)

    def rows(self) -> list[dict[str, str]]:
        return read(self.path)

    def append(self, row: Row) -> None:
        """One more row, with the present stamp."""
        if not self.path.exists():
            self.rewrite([])
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow({**row, **stamp()})

    def rewrite(self, rows: Iterable[Row]) -> None:
        """The file with just these rows, as they are."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file) -> csv.DictWriter:
        return csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
