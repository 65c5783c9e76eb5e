"""Markdown tables of benchmark results.

python benchmarks/tables.py                                      # verification and training
python benchmarks/tables.py --methods crown,local-lip,sdp-crown  # these columns
python benchmarks/tables.py --norms                              # masked norms
python benchmarks/tables.py --readme                             # writes the table of the README anew

The pages of the site take theirs from here too (docs/tools/fragments.py).
"""

from __future__ import annotations

from pathlib import Path

import click
from lib.table import read

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).resolve().parents[1] / "README.md"
#: What stands around the README's table.
MARKS = "<!-- benchmarks/tables.py --readme -->\n", "\n<!-- end -->"
#: Columns of the tables of verification, and those whose times stand beside them.
VERIFICATION = (
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


def published(rows: list[dict[str, str]]) -> list[list[str]]:
    """The verifier beside the published figures of SDP-CROWN: of each network and radius the run on most images."""
    head = ["network, ε", "images", "certified", "refuted", "open", "s per image"]
    table = [[*head, "SDP-CROWN, published", "its PGD"]]
    for group in dict.fromkeys((row["network"], row["eps"]) for row in rows):
        runs = [r for r in rows if (r["network"], r["eps"]) == group]
        row = max(reversed(runs), key=lambda r: int(r["images"]))
        shares = [f"{100 * float(row[f'share_{word}']):.1f}" for word in ("certified", "refuted", "open")]
        seconds = f"{float(row['cpu_seconds_median']):.2g}"
        table.append([", ".join(group), row["images"], *shares, seconds, row["published"], row["pgd_published"]])
    return table


def branching(rows: list[dict[str, str]]) -> list[list[str]]:
    """One line per image that bounds and attacks leave open."""
    table = [["network, ε", "image", "ends as", "margin at least", "parts", "s"]]
    for row in rows:
        cells = [row["image"], row["status"], row["lower"], row["domains"], row["cpu_seconds"]]
        table.append([f"{row['network']}, {row['eps']}", *cells])
    return table


def jacobians(rows: list[dict[str, str]], norm: str) -> list[list[str]]:
    """Constants of a norm: each upper bound over the largest lower bound that any method found for the network."""
    rows = [row for row in rows if row["norm"] == norm and row["upper"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    table = [["network, ε", "neurons", "constant at least", *methods]]
    for network, eps in dict.fromkeys((row["network"], row["eps"]) for row in rows):
        here = {r["method"]: r for r in rows if (r["network"], r["eps"]) == (network, eps) and r["sample"] == "0"}
        if not here:
            continue
        least = max(float(row["lower"]) for row in here.values())
        cells = [f"{float(here[m]['upper']) / least:.4g}" if m in here else "" for m in methods]
        neurons = next(iter(here.values()))["neurons"]
        table.append([f"{network}, {float(eps):.3g}", neurons, f"{least:.4g}", *cells])
    return table


def columns(rows: list[dict[str, str]], names: dict[str, str]) -> list[list[str]]:
    """Some columns as they stand: ``{column: its head}``; one that is empty in every row is left out."""
    names = {name: head for name, head in names.items() if any(row[name] for row in rows)}
    return [list(names.values()), *([row[name] for name in names] for row in rows)]


def latest(rows: list[dict[str, str]], key: str, names: dict[str, str]) -> list[list[str]]:
    """The same, of the last row for each call: what was measured before stays in the file alone."""
    return columns([{**row, key: f"`{row[key]}`"} for row in {row[key]: row for row in rows}.values()], names)


#: Methods on networks of products, by the heads of their columns.
_PRODUCTS = {"ibp": "IBP", "crown": "CROWN", "local-lip": "local-lip", "local-lip-tight": "tight",
             "local-lip-crown": "local-lip-crown",
             "local-lip constant": "constant", "local-lip-crown constant": "constant, CROWN's intervals"}  # fmt: skip


def products(rows: list[dict[str, str]], classifiers: bool) -> list[list[str]]:
    """Widths over the tangents' (of classifiers) or over samples' per network and radius, of each method's last row."""
    rows = [r for r in rows if (r["region"] == "ball") == classifiers]
    heads = [h for m, h in _PRODUCTS.items() if any(r["method"] == m for r in rows)]
    verdicts = ["certified: CROWN", "local-lip-crown", "PGD"] if classifiers else []
    table = [["network, ε", "images" if classifiers else "region", *heads, *verdicts]]
    for group in dict.fromkeys((r["network"], r["region"], r["eps"]) for r in rows):
        here = {r["method"]: r for r in rows if (r["network"], r["region"], r["eps"]) == group}
        some = next(iter(here.values()))
        ratios = [here.get(m, {}).get("ratio", "") for m, h in _PRODUCTS.items() if h in heads]
        counts = [here.get(m, {}).get("certified", "") for m in ("crown", "local-lip-crown")] if classifiers else []
        robust = [some["robust"]] if classifiers else []
        second = some["images"] if classifiers else group[1]
        table.append([f"{group[0]}, {group[2]}", second, *ratios, *counts, *robust])
    return table


def steps(rows: list[dict[str, str]]) -> list[list[str]]:
    """Training steps, in times of a plain one."""
    table = [["network, activation", "batch", "bound", "s", "times plain", "floats kept"]]
    for row in rows:
        cells = [row["batch"], row["step"], row["seconds"], row["times_plain"], row["kept_floats"]]
        table.append([f"{row['arch']}, {row['activation'].replace('_', ' ')}", *cells])
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


def norm_ranges(rows: list[dict[str, str]], section: str) -> list[list[str]]:
    """Values of a section, least to largest over layers, masks and weights: a line per method, a column per network."""
    rows = [row for row in rows if row["section"] == section and row["value"]]
    names = list(dict.fromkeys(row["network"] for row in rows))
    table = [["what", *names]]
    for method in dict.fromkeys(_measured(row) for row in rows):
        found = [[float(r["value"]) for r in rows if (_measured(r), r["network"]) == (method, name)] for name in names]
        table.append([method, *(f"{min(v):.3g} to {max(v):.3g}" if v else "" for v in found)])
    return table


def _measured(row: dict[str, str]) -> str:
    """Method and setting, whichever layer it was."""
    return ", ".join(part for part in (row["method"], row["setting"].partition(": ")[2]) if part)


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


def with_table(text: str) -> str:
    """The README with its table as the CSV has it."""
    head, rest = text.split(MARKS[0])
    return head + MARKS[0] + markdown(published(read(RESULTS / "sdp_crown.csv"))) + MARKS[1] + rest.split(MARKS[1])[1]


@click.command()
@click.option("--methods", help="Print one table with these columns and their times.")
@click.option("--norms", "of_norms", is_flag=True, help="Print those of masked norms.")
@click.option("--readme", is_flag=True, help="Write the table of the README anew.")
def main(methods: str | None, of_norms: bool, readme: bool) -> None:
    if readme:
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if of_norms:
        click.echo("\n\n".join(markdown(table) for table in norms(read(RESULTS / "norms.csv"))))
        return
    rows = read(RESULTS / "verify.csv")
    pairs = VERIFICATION if methods is None else ((methods, methods),)
    tables = [verification(rows, *(names.split(",") for names in pair)) for pair in pairs]
    if methods is None:
        tables.append(training(read(RESULTS / "train_cpu.csv")))
    click.echo("\n\n".join(markdown(table) for table in tables))


if __name__ == "__main__":
    main()
