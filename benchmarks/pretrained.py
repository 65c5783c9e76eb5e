"""What do the networks of `examples/pretrained` certify, soundly, on the test images, and does any attack refute it?

One CSV row for each network and bound. Every image is attacked; one that is certified and falls ends the run.

    python benchmarks/pretrained.py --data-dir DATA                                # all test images, the global bound
    python benchmarks/pretrained.py --data-dir DATA --bound sdp-crown --limit 200  # a tighter bound, fewer images

Rows of images that `lirpa-lip certify` has made already, in ``--work``, are not made again.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import click
from lib.table import Table

ROOT = Path(__file__).resolve().parents[1]
PRETRAINED = ROOT / "examples" / "pretrained"
RESULTS = Path(__file__).parent / "results" / "pretrained.csv"
COLUMNS = "network eps bound images clean pgd pgd_steps certified certificate delta".split()


def certified_and_refuted(path: Path, eps: str) -> list[str]:
    """Indices of images that a certificate and an attack contradict each other on."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["index"] for row in rows if row[f"certified@{eps}"] == "1" and row[f"pgd@{eps}"] == "0"]


def measure(network: Path, bound: str, work: Path, options: list[str]) -> dict[str, object]:
    """The row of one network.

    Raises:
        RuntimeError: an image that is certified was attacked with success.
    """
    out = work / f"{network.name}-{bound}"
    command = [sys.executable, "-m", "lirpa_lip.cli", "certify", str(network), "--bound", bound, "--radius", "none"]
    subprocess.run([*command, "--out", str(out), *options], check=True, cwd=ROOT)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    (line,) = summary["table"]
    broken = certified_and_refuted(out / "certificates.csv", line["eps"])
    if broken:
        raise RuntimeError(f"{network.name}: certified, and yet refuted: {', '.join(broken)}. Please report this.")
    return {
        "network": network.name,
        "bound": bound,
        "images": summary["samples"],
        "pgd_steps": summary["settings"]["pgd_steps"],
        "certificate": summary["certificate"],
        "delta": summary["delta_per_sample"],
        "eps": line["eps"],
        **{name: f"{value:.4f}" for name, value in (("clean", summary["clean"]), *list(line.items())[1:])},
    }


@click.command()
@click.option("--networks", default=",".join(sorted(p.name for p in PRETRAINED.iterdir() if p.is_dir())))
@click.option("--bound", default="global-product", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Of test images; all if left out.")
@click.option("--pgd-steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--data-dir", help="Folder of the data; downloaded if left out.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/pretrained"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(networks, bound, limit, pgd_steps, batch_size, data_dir, work, out):
    """Certify, attack, and write a row for each network."""
    options = ["--pgd-steps", str(pgd_steps), "--batch-size", str(batch_size)]
    options += ["--limit", str(limit)] if limit else []
    options += ["--data-dir", data_dir] if data_dir else []
    table = Table(out, COLUMNS)
    for name in networks.split(","):
        row = measure(PRETRAINED / name, bound, work.resolve(), options)
        table.append(row)
        click.echo(" ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
