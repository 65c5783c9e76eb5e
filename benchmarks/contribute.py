"""Puts a certified run on the board of the site: one command for a row of your own.

    lirpa-lip train --dataset digits --arch cnn-tiny --out runs/mine
    lirpa-lip certify runs/mine --eps 0.1,0.25,0.5
    python benchmarks/contribute.py runs/mine --name digits_cnn_mine

It copies the certificates and the resolved settings to ``docs/board/NAME`` and appends one CSV row per bound and
radius, with the commands that repeat it. Rows of the same name are replaced. ``make docs`` then shows them; send the
result as a change.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
from lib.hardware import stamp
from lib.table import Table

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = "network eps images clean pgd method certified certificate delta train certify".split()


def rows_of(run: Path, name: str) -> list[dict[str, object]]:
    """A row per certified bound and radius of a run.

    Raises:
        FileNotFoundError: nothing is certified there.
    """
    found: list[dict[str, object]] = []
    for path in sorted((run / "certificates").glob("*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        settings = summary["settings"]
        bound, split = settings["bound"], path.parent.name.rpartition("-")[2]
        call = f"lirpa-lip certify runs/{name} --bound {bound} --split {split} --eps {settings['eps']}"
        call += f" --limit {summary['samples']} --certificate {settings['certificate']} --delta {settings['delta']}"
        call += f" --radius-steps {settings['radius_steps']} --pgd-steps {settings['pgd_steps']}"
        call += " --image-box" * bool(settings["image_box"])
        for line in summary["table"]:
            found.append(
                {
                    "network": name,
                    "eps": line["eps"],
                    "images": summary["samples"],
                    "clean": summary["clean"],
                    "pgd": line["pgd"],
                    "method": bound,
                    "certified": line["certified"],
                    "certificate": summary["certificate"],
                    "delta": summary["delta_per_sample"],
                    "train": f"lirpa-lip train --config docs/board/{name}/config.yaml --out runs/{name}",
                    "certify": call,
                }
            )
    if not found:
        raise FileNotFoundError(f"no finished certificate in {run / 'certificates'}: lirpa-lip certify {run} --eps ...")
    return found


def contribute(run: Path, name: str, board: Path, table: Path) -> int:
    """Copies the files of a run and writes its rows; returns how many."""
    rows = rows_of(run, name)
    folder = board / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(run / "config.yaml", folder / "config.yaml")
    for path in sorted((run / "certificates").glob("*/certificates.csv")):
        shutil.copy(path, folder / f"{path.parent.name}.csv")
    csv = Table(table, COLUMNS)
    csv.rewrite([*(row for row in csv.rows() if row["network"] != name), *({**row, **stamp()} for row in rows)])
    return len(rows)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", required=True, help="Of the network on the board: small letters, digits and _.")
def main(run: Path, name: str) -> None:
    """Put the certificates of RUN, a folder of `lirpa-lip train`, on the board."""
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise click.BadParameter(f"{name!r} has other signs than small letters, digits and _.", param_hint="--name")
    try:
        count = contribute(run, name, ROOT / "docs" / "board", Path(__file__).parent / "results" / "board.csv")
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count} rows of {name}; `make docs` shows them on the board")


if __name__ == "__main__":
    main()
