"""Tables of the command line: drawn on a terminal, CSV into a pipe or a file."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import click

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its head in CSV.
        head: its head on a terminal; broken only where it says so, never cut. Empty: it is in CSV only.
        form: how a terminal shows its numbers; CSV has all digits.
        rounding: ``"up"`` for upper bounds, ``"down"`` for lower ones: what is shown is then a bound too.
        scale: what a terminal multiplies its numbers by.
        blank_zero: a terminal shows 0 as no value.
    """

    name: str
    head: str
    form: str = ""
    rounding: Literal["nearest", "up", "down"] = "nearest"
    scale: int = 1
    blank_zero: bool = False


#: Columns of more than one table; shares of samples are fractions in CSV. δ is a certificate's failure probability.
EPS = Column("eps", "ε")
PGD = Column("pgd", "PGD %", ".2f", scale=100)
CERTIFIED = Column("certified", "certified %", ".2f", "down", scale=100)
WORTH = (Column("certificate", "kind"), Column("delta", "δ ≤", ".1g", "up", blank_zero=True))


class Table:
    """Rows shown as they come in CSV, all together on a terminal. Text beside the table goes to standard error, so
    that a pipe holds nothing but the table.
    """

    def __init__(self, columns: Sequence[Column], title: str = "", console: Any = None) -> None:
        from rich.console import Console

        self.columns, self.title, self.rows = columns, title, []  # type: ignore[var-annotated]
        self.console = console or Console()
        self._writer = None if self.console.is_terminal else csv.writer(_Standard(), lineterminator="\n")
        if self._writer is not None:
            say(title)
            self._writer.writerow([column.name for column in columns])

    def add(self, *cells: Cell, new_section: bool = False) -> None:
        """One row; ``None`` where there is no such value. ``new_section`` draws a line above it."""
        if self._writer is not None:
            self._writer.writerow(["" if cell is None else cell for cell in cells])
        self.rows.append((cells, new_section))

    def close(self) -> None:
        """Draws the table, on a terminal."""
        if self._writer is not None:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable

        room = self.console.width
        for gap in (1, 0):  # one space between columns may still be too wide: then lines break, never cells
            shown = self._drawn(RichTable(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False, pad_edge=False))
            needed = self.console.measure(shown, options=self.console.options.update(width=1000)).maximum
            if needed <= room:
                break
        wide = Console(file=self.console.file, force_terminal=True, width=max(room, needed), height=self.console.height)
        wide.print(self.title, highlight=False)
        wide.print(shown, highlight=False)

    def _drawn(self, shown: Any) -> Any:
        drawn = [(i, column) for i, column in enumerate(self.columns) if column.head and self._has_values(i)]
        for index, column in drawn:
            numbers = all(not isinstance(cells[index], str) for cells, _ in self.rows)
            shown.add_column(column.head, justify="right" if numbers else "left", no_wrap=True)
        for cells, new_section in self.rows:
            if new_section:
                shown.add_section()
            shown.add_row(*(shown_as(cells[index], column) for index, column in drawn))
        return shown

    def _has_values(self, index: int) -> bool:
        """Whether there is anything in a column: one of dashes alone takes room from the others."""
        return not self.rows or any(shown_as(cells[index], self.columns[index]) != "–" for cells, _ in self.rows)


def show_table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], console: Any = None) -> None:
    """A table whose rows are all known."""
    table = Table(columns, title, console)
    for row in rows:
        table.add(*row)
    table.close()


def say(text: str) -> None:
    """A line for whoever watches, on standard error."""
    if text:
        click.echo(text, err=True)


def shown_as(cell: Cell, column: Column) -> str:
    """A cell as a terminal shows it."""
    if cell is None or cell == "" or (column.blank_zero and cell == 0):
        return "–"
    if isinstance(cell, str):
        return cell
    exact = cell * column.scale if column.scale == 1 else round(cell * column.scale, 10)  # 0.29 · 100 is 28.999…
    text = format(exact, column.form)
    if column.rounding == "nearest" or not math.isfinite(exact):
        return text
    shown, true = Decimal(text), Decimal(exact)
    if shown < true if column.rounding == "up" else shown > true:
        last = Decimal(1).scaleb(shown.as_tuple().exponent)  # type: ignore[arg-type]
        text = format(shown + (last if column.rounding == "up" else -last), "f" if "e" not in text else "").lower()
    return text


class _Standard(io.TextIOBase):
    """Standard output as it is when a row is written, each row at once."""

    def write(self, text: str) -> int:
        sys.stdout.write(text)
        sys.stdout.flush()
        return len(text)
