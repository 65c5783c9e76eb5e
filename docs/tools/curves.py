"""A picture for each network of the board: certified accuracy against the radius, or methods beside each other."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lirpa_lip.plots import accuracy_curves, method_comparison
from lirpa_lip.plots.canvas import new_figure, save
from lirpa_lip.results import Certificate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Entry(Protocol):
    """What a picture shows of a row of the board."""

    eps: str
    images: str
    pgd: float
    method: str
    certified: float


@dataclass(frozen=True)
class Answer:
    """One sample of a certificate file."""

    prediction: int
    label: int
    radius: float
    worth: Certificate


def read_answers(path: Path) -> list[Answer]:
    """The samples of a ``certificates.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Answer(
                int(row["prediction"]),
                int(row["label"]),
                float(row["radius"]),
                Certificate.of(row["certificate"], float(row["delta"])),
            )
            for row in csv.DictReader(file)
        ]


def draw(entries: Sequence[Entry], files: Sequence[Path], path: Path) -> None:
    """Writes the picture of one network: from its certificate files where there are some, else from its rows."""
    radii = {entry.eps for entry in entries}
    if files:
        records = {file.stem: read_answers(file) for file in files}
        figure = accuracy_curves(records, attacked={float(Fraction(e.eps)): e.pgd / 100 for e in entries})
    elif len(radii) > 1:
        figure = _lines(entries)
    else:
        names = [f"{e.method} (n = {e.images})" for e in entries]
        figure = method_comparison(names, [e.certified / 100 for e in entries])
    save(figure, path)


def _lines(entries: Sequence[Entry]) -> Figure:
    figure, axes = new_figure()
    for method in dict.fromkeys(e.method for e in entries):
        mine = sorted((float(Fraction(e.eps)), e.certified) for e in entries if e.method == method)
        axes.plot(*zip(*mine), "o-", markersize=4, label=method)
    axes.set(xlabel="radius ε", ylabel="certified accuracy (%)", ylim=(0, 102))
    axes.legend(fontsize=7, ncols=2)
    return figure
