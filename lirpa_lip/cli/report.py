"""``lirpa-lip report``: several certified runs beside each other, as a table and a figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.tables import Column, say, show_table
from lirpa_lip.cli.terminal import NewPath, begins_with, refuse_foreign
from lirpa_lip.errors import DataError
from lirpa_lip.ranges import COUNT
from lirpa_lip.results import KINDS

_HEADS = {
    "eps": "ε",
    "clean": "clean %",
    "pgd": "PGD %",
    "certified": "certified %",
    "certificate": "kind",
    "delta": "δ",
}


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--names", help="Names of the runs, separated by commas.  [default: from their folders]")
@click.option(
    "--out",
    type=NewPath(),
    default=Path("report"),
    show_default=True,
    help="Folder for report.csv, report.md and report.png.",
)
@click.option("--force", is_flag=True, help="Overwrite files in --out that no report wrote.")
def report(folders: tuple[Path, ...], names: str | None, out: Path, force: bool) -> None:
    """Compare runs: FOLDERS are results of `lirpa-lip certify`, or runs that hold such results."""
    from lirpa_lip.plots.certified_accuracy import draw_certified_accuracy
    from lirpa_lip.training.epsilon import parse_epsilon

    found = list(dict.fromkeys(certificate for folder in folders for certificate in certificates_in(folder)))
    labels = [name.strip() for name in names.split(",")] if names is not None else short_names(found)
    if len(labels) != len(found):
        raise click.UsageError(
            f"--names has {len(labels)} names for {len(found)} results: {', '.join(map(str, found))}"
        )
    if not all(labels):
        raise click.UsageError("--names has a name that is empty.")
    if len(set(labels)) != len(labels):
        raise click.UsageError(f"two results would have one name: {', '.join(labels)}; tell them apart with --names.")
    summaries = [summary_of(folder) for folder in found]
    rows = [line for label, summary in zip(labels, summaries, strict=True) for line in report_lines(label, summary)]
    curves = {
        label: rows_of(folder, summary["samples"])
        for label, folder, summary in zip(labels, found, summaries, strict=True)
    }
    out.mkdir(parents=True, exist_ok=True)
    refuse_foreign([out / "report.csv"], begins_with(",".join(rows[0])), force)
    refuse_foreign([out / "report.md"], begins_with(markdown(rows).splitlines()[0]), force)
    if not (out / "report.csv").exists():
        refuse_foreign([out / "report.png"], lambda path: False, force)
    with (out / "report.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "report.md").write_text(markdown(rows))
    attacked = {
        label: {float(parse_epsilon(r["eps"])): r["pgd"] for r in summary["table"] if r["pgd"] is not None}
        for label, summary in zip(labels, summaries, strict=True)
    }
    draw_certified_accuracy(curves, out / "report.png", attacked)
    show_table("", columns_of(rows), [list(row.values()) for row in rows])
    say(f"wrote report.csv, report.md and report.png to {out}")


def rows_of(folder: Path, count: int) -> list[Any]:
    """The rows that a summary is of.

    Raises:
        DataError: some are missing.
    """
    from lirpa_lip.training.certification import read_rows

    rows = [row for row in read_rows(folder) if row.index < count]
    if len(rows) != count:
        raise DataError(f"{folder} holds rows of {len(rows)} of {count} samples; certify once more to add the others.")
    return rows


def summary_of(folder: Path) -> dict[str, Any]:
    """What ``certify`` wrote of a folder.

    Raises:
        DataError: it is damaged.
    """
    from lirpa_lip.training.epsilon import parse_epsilon

    try:
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lines = report_lines("", found)
        for line in lines:
            parse_epsilon(line["eps"])
            shares = [line[name] for name in ("clean", "pgd", "certified") if line[name] is not None]
            if not all(0 <= share <= 100 for share in shares) or not 0 <= line["delta"] < 1:
                raise ValueError("a share, or a probability, of more than all or less than nothing")
            if line["certificate"] not in KINDS or not isinstance(line["bound"], str):
                raise ValueError("no kind of certificate, or no bound")
        if not lines:
            raise ValueError("no radii")
        COUNT.check("samples", found["samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'summary.json'} is damaged ({error!r}); certify once more to write it anew."
        ) from error
    return found


def certificates_in(folder: Path) -> list[Path]:
    """The folder itself, or every result below it.

    Raises:
        DataError: there is none.
    """
    if (folder / "summary.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.rglob("summary.json"))
    if not found:
        raise DataError(f"{folder} holds no certificates; make them with: lirpa-lip certify {folder}")
    return found


def short_names(folders: list[Path]) -> list[str]:
    """Paths without what all have in common."""
    parts = [folder.resolve().parts for folder in folders]
    if len(parts) == 1:
        return [parts[0][-1]]
    first = 0
    while len({p[first] for p in parts if first < len(p)}) == 1 and all(first < len(p) - 1 for p in parts):
        first += 1
    return ["/".join(name for name in p[first:] if name not in ("checkpoints", "certificates")) for p in parts]


def report_lines(label: str, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One line per ε; accuracies in per cent."""
    common = {"run": label, "bound": summary["settings"]["bound"], "samples": summary["samples"]}
    kind = {"certificate": summary["certificate"], "delta": summary["delta_per_sample"]}
    return [
        {
            **common,
            "clean": round(100 * summary["clean"], 2),
            "eps": line["eps"],
            "pgd": None if line["pgd"] is None else round(100 * line["pgd"], 2),
            "certified": round(100 * line["certified"], 2),
            **kind,
        }
        for line in summary["table"]
    ]


def columns_of(rows: list[dict[str, Any]]) -> list[Column]:
    """Columns of the table; those named in `_HEADS` have another head on a terminal."""
    return [Column(name, _HEADS.get(name, name)) for name in rows[0]]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for a README."""
    heads = [column.head for column in columns_of(rows)]
    cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in [heads, ["---"] * len(heads), *cells])
