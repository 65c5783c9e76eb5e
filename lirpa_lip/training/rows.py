"""Certificates on disk: one CSV row per sample, complete or not counted, a file per process and set of radii."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lirpa_lip.errors import CheckpointError
from lirpa_lip.results import KINDS, Certificate, Kind
from lirpa_lip.training.epsilon import parse_epsilon

FIELDS = ("index", "label", "prediction", "margin", "radius", "certificate", "delta")
_KEPT = (*FIELDS, "failed", "sample")


@dataclass(frozen=True)
class Row:
    """One sample. ``radius`` is −inf where no ball is certified; every closed ball of at most ``radius`` is safe.

    Attributes:
        pgd: radius as it was written -> whether the attack left the sample right.
        failed: smallest radius at which the sample was tried in vain, inf for none.
        sample: digest of the image and its label.
    """

    index: int
    label: int
    prediction: int
    margin: float
    radius: float
    certificate: Kind
    delta: float
    pgd: dict[str, bool]
    failed: float = float("inf")
    sample: str = ""
    eps: tuple[Fraction, ...] = ()

    @property
    def worth(self) -> Certificate:
        return Certificate(self.certificate, self.delta)

    def certified(self, eps: Fraction) -> bool:
        """Right, and known to stay so on the closed ball: ``radius`` is compared with the exact number."""
        return self.prediction == self.label and reaches(self.radius, eps)

    def decided(self, eps: Fraction) -> bool:
        """Whether the bound is known to hold, or has been tried in vain, at this radius."""
        return reaches(self.radius, eps) or not reaches(self.failed, eps) or self.failed == eps

    def survived(self, eps: Fraction) -> bool:
        """Under PGD at this radius, however it was written.

        Raises:
            KeyError: it was not attacked there.
        """
        return {parse_epsilon(name): value for name, value in self.pgd.items()}[eps]


def reaches(radius: float, eps: Fraction) -> bool:
    """Whether a radius is at least the exact one."""
    finite = radius not in (float("inf"), float("-inf"))
    return Fraction(radius) >= eps if finite else radius > 0


def read_rows(folder: Path) -> list[Row]:
    """All complete rows of a certification, by index, whatever number of processes wrote them.

    Of several rows of a sample the one with the most radii counts: it was made from the others. Half a row, as a killed
    process may leave it, and one that the disk damaged count for nothing: that sample is certified again.
    """
    rows: dict[int, Row] = {}
    for path in sorted(folder.glob("rows-*.csv")):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for record in csv.DictReader(line for line in file if "\0" not in line and "\ufffd" not in line):
                row = _row(record)
                if row is not None and (row.index not in rows or len(rows[row.index].eps) < len(row.eps)):
                    rows[row.index] = row
    return [rows[index] for index in sorted(rows)]


def append_rows(folder: Path, stem: str, rows: list[Row], eps: list[str]) -> None:
    """Adds rows to ``folder/<stem>.csv``, or to the next such file where that one is for other radii.

    Raises:
        CheckpointError: they cannot be written; rows that were are kept.
    """
    names = [*_KEPT, *(f"pgd@{name}" for name in eps), "end"]
    head = _line(names)
    path, number = folder / f"{stem}.csv", 1
    while path.exists() and not _begins(path, head):
        number += 1
        path = folder / f"{stem}-{number}.csv"
    before = path.read_bytes()[-1:] if path.exists() else b""
    text = "" if before else head
    if before not in (b"", b"\n"):  # the last row was cut short; it must not run into the next
        text += "\r\n"
    for row in rows:
        pgd = [int(row.pgd[name]) if name in row.pgd else "" for name in eps]
        cells = [*(repr(v) if isinstance(v, float) else str(v) for v in values(row, _KEPT)), *map(str, pgd)]
        text += _line([*cells, seal([*names[:-1], *cells])])
    with explained(folder), path.open("a", newline="", encoding="utf-8") as file:
        file.write(text)


def seal(cells: list[str]) -> str:
    """What ends a row: a digest of its cells and their names, by which a damaged one is noticed."""
    return hashlib.sha256("\x1f".join(cells).encode()).hexdigest()[:16]


def replace_file(path: Path, content: str | bytes) -> None:
    """As `write_whole`, with the system's own error."""
    scratch = path.with_name(f".{path.name}.writing")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is complete or not there.

    Raises:
        CheckpointError: it cannot be written; what was there before is.
    """
    with explained(path.parent):
        replace_file(path, content)


def write_first(path: Path, text: str) -> None:
    """Writes a file, complete, unless it is there; of several processes that do so at once, one does.

    Raises:
        CheckpointError: it cannot be written.
    """
    if path.exists():
        return
    scratch = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with explained(path.parent):
        try:
            scratch.write_text(text, encoding="utf-8")
            with suppress(FileExistsError):
                os.link(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def cause_of(error: OSError) -> str:
    return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns an error of the system into one that says what is kept, and how to go on."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"results could not be written to {folder}: {cause_of(error)}. Rows that were written are kept: make "
            "room, and start the same command again."
        ) from error


def values(row: Row, names: tuple[str, ...] = FIELDS) -> list[Any]:
    return [getattr(row, name) for name in names]


def _line(cells: list[Any]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _begins(path: Path, head: str) -> bool:
    found = path.read_bytes()[: len(head.encode())]
    return found == head.encode() or not found


def _row(record: dict[str, str]) -> Row | None:
    """None for a row that is incomplete or damaged."""
    try:
        *names, last = record
        end = record[last]
        # "." ended the rows of earlier versions, which had no digest
        whole = last == "end" and (end == "." or end == seal([*names, *(record[name] for name in names)]))
        return _read(record) if whole else None
    except (ValueError, KeyError, TypeError):
        return None


def _read(record: dict[str, str]) -> Row:
    attacked = {key[4:]: value for key, value in record.items() if key and key.startswith("pgd@")}
    pgd = {name: value == "1" for name, value in attacked.items() if value != ""}
    index, label, prediction = (int(record[name]) for name in ("index", "label", "prediction"))
    margin, radius, delta = (float(record[name]) for name in ("margin", "radius", "delta"))
    if index < 0 or math.isnan(radius) or not 0 <= delta < 1:
        raise ValueError("values that no row has")
    kind = KINDS[KINDS.index(record["certificate"])]  # type: ignore[arg-type]
    kept = (float(record.get("failed") or "inf"), record.get("sample") or "")
    eps = tuple(parse_epsilon(name) for name in attacked)
    return Row(index, label, prediction, margin, radius, kind, delta, pgd, *kept, eps)
