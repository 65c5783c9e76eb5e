"""Markdown tables of benchmark results.

python benchmarks/tables.py                                      # those of the README, in its order
python benchmarks/tables.py --methods crown,local-lip,sdp-crown  # these columns
python benchmarks/tables.py --norms                              # those of docs/norms.md
"""

from __future__ import annotations

from pathlib import Path

import click
from lib.table import read

RESULTS = Path(__file__).parent / "results"
#: Columns of the README's tables, and those whose times stand beside them.
README = (
    ("global-product,local-product,crown,local-lip,sdp-crown", "crown,local-lip,sdp-crown"),
    ("sdp-crown,sdp-crown-global", "sdp-crown,sdp-crown-global"),
    ("crown,local-lip,sdp-crown-tight", "sdp-crown-tight"),
)


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


def norm_speed(rows: list[dict[str, str]]) -> list[list[str]]:
    """How many times sooner Lanczos is there than the power method; at least, where that did not get there at all."""
    rows = [row for row in rows if row["section"] == "speed"]
    shares = list(dict.fromkeys(row["eliminated"] for row in rows))
    table = [["network, weights", *(s if s == "inactive" else f"{100 * float(s):g} %" for s in shares)]]
    for name, weights in dict.fromkeys((row["network"], row["weights"]) for row in rows):
        cells = []
        for share in shares:
            here = [r for r in rows if (r["network"], r["weights"], r["eliminated"]) == (name, weights, share)]
            cells.append(_ratio(here))
        table.append([f"{name}, {weights}", *cells])
    return table


def _ratio(rows: list[dict[str, str]]) -> str:
    last = next((row for row in rows if row["setting"].startswith("power / lanczos")), None)
    if last is None:
        return ""
    if float(last["value"]) < float("inf"):
        return f"{float(last['value']):.3g}"
    longest = max(float(row["seconds"]) for row in rows if row["method"] == "power")
    lanczos = float(last["note"].split("lanczos ")[1].removesuffix(" s"))
    return f"> {longest / lanczos:.3g}"


def norm_values(rows: list[dict[str, str]], section: str, across: str) -> list[list[str]]:
    """Values of a section: a line per network, method and what else tells them apart, a column per ``across``."""
    rows = [row for row in rows if row["section"] == section and row["value"]]
    columns = list(dict.fromkeys(row[across] for row in rows))
    table = [["network", "method", *(f"{across} {column}" for column in columns)]]
    for name, method in dict.fromkeys((row["network"], row["method"]) for row in rows):
        here = {r[across]: r["value"] for r in rows if (r["network"], r["method"]) == (name, method)}
        table.append([name, method, *(f"{float(here[c]):.3g}" if c in here else "" for c in columns)])
    return table


def norm_bounds(rows: list[dict[str, str]]) -> list[list[str]]:
    """Certified product over the converged one, least to largest mean over samples."""
    rows = [row for row in rows if row["section"] == "bounds" and row["mean_error"] not in ("", "nan")]
    names = list(dict.fromkeys(row["network"] for row in rows))
    table = [["bound", *names]]
    for method, setting in dict.fromkeys((row["method"], row["setting"]) for row in rows):
        found = {name: [] for name in names}
        for row in rows:
            if (row["method"], row["setting"]) == (method, setting):
                found[row["network"]].append(1 + float(row["mean_error"]))
        cells = [f"{min(v):.6g} to {max(v):.6g}" if v else "too large to run" for v in found.values()]
        table.append([f"{method}, {setting}", *cells])
    return table


def norms(rows: list[dict[str, str]]) -> list[list[list[str]]]:
    return [
        norm_speed(rows),
        norm_bounds(rows),
        norm_values(rows, "elimination", "eliminated"),
        norm_values(rows, "starts", "iterations"),
        norm_values(rows, "training", "weights"),
    ]


def markdown(table: list[list[str]]) -> str:
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command()
@click.option("--methods", help="Print one table with these columns and their times.")
@click.option("--norms", "of_norms", is_flag=True, help="Print those of docs/norms.md.")
def main(methods: str | None, of_norms: bool) -> None:
    if of_norms:
        click.echo("\n\n".join(markdown(table) for table in norms(read(RESULTS / "norms.csv"))))
        return
    rows = read(RESULTS / "verify.csv")
    pairs = README if methods is None else ((methods, methods),)
    tables = [verification(rows, *(names.split(",") for names in pair)) for pair in pairs]
    if methods is None:
        tables.append(training(read(RESULTS / "train_cpu.csv")))
    click.echo("\n\n".join(markdown(table) for table in tables))


if __name__ == "__main__":
    main()
