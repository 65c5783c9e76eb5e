"""Markdown tables of benchmark results.

    python benchmarks/tables.py                                      # those of the README, in its order
    python benchmarks/tables.py --methods crown,local-lip,sdp-crown  # these columns
"""

from __future__ import annotations

import csv
from pathlib import Path

import click

RESULTS = Path(__file__).parent / "results"
#: Columns of the README's tables, and those whose times stand beside them.
README = (
    ("global-product,local-product,crown,local-lip,sdp-crown", "crown,local-lip,sdp-crown"),
    ("sdp-crown,sdp-crown-global", "sdp-crown,sdp-crown-global"),
    ("crown,local-lip,sdp-crown-tight", "sdp-crown-tight"),
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def verification(rows: list[dict[str, str]], methods: list[str], timed: list[str]) -> list[list[str]]:
    """One line per network and radius at which all methods were run, on the images that all of them saw."""
    table = [["network, ε", "images", *methods, "PGD", *(f"time: {m}" for m in timed)]]
    for group in dict.fromkeys((row["network"], row["eps"]) for row in rows):
        here = {r["method"]: r for r in rows if (r["network"], r["eps"]) == group and int(r["images"] or 0) > 0}
        if any(method not in here for method in (*methods, *timed)):
            continue
        shared = min(int(here[method]["images"]) for method in methods)
        # the row of the method that saw fewest images says what PGD leaves of just these
        fewest = min((here[m] for m in methods), key=lambda r: int(r["images"]))
        certified = [f"{100 * here[m]['verdicts'][:shared].count('1') / shared:.0f}" for m in methods]
        times = [f"{float(here[m]['cpu_seconds_per_image']):.2g}" for m in timed]
        table.append([", ".join(group), str(shared), *certified, f"{100 * float(fewest['pgd']):.0f}", *times])
    return table


def training(rows: list[dict[str, str]]) -> list[list[str]]:
    """One line per trained network."""
    kinds = [key for key in rows[0] if key.startswith("certified_")]
    head = ["setting", "activation", "trained with", "epochs", "clean", "PGD"]
    table = [[*head, *(kind[10:] for kind in kinds), "eliminated", "s"]]
    for row in rows:
        bound = row["method"] + (", sparsity" if float(row["sparsity"]) else "")
        found = [row[key] for key in ("epochs", "clean", "pgd", *kinds, "eliminated", "train_seconds")]
        table.append([row["setting"], row["activation"].replace("_", " "), bound, *found])
    return table


def markdown(table: list[list[str]]) -> str:
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command()
@click.option("--methods", help="Print one table with these columns and their times.")
def main(methods: str | None) -> None:
    rows = read(RESULTS / "verify.csv")
    pairs = README if methods is None else ((methods, methods),)
    tables = [verification(rows, *(names.split(",") for names in pair)) for pair in pairs]
    if methods is None:
        tables.append(training(read(RESULTS / "train_cpu.csv")))
    click.echo("\n\n".join(markdown(table) for table in tables))


if __name__ == "__main__":
    main()
