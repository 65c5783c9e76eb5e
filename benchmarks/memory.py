"""What does it gain to keep freed memory (`lirpa_lip.keep_freed_memory`), which the commands do?

Networks with random weights on 28 × 28 images, bounds of all logits. Processor seconds, of the program and of the
kernel for it, and the peak of memory; medians over fresh processes that take turns, one thread each.

    python benchmarks/memory.py --repeats 2
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import click
import torch
from lib.table import Table

from lirpa_lip.training.models import build_model
from lirpa_lip.training.starts import orthogonal_start

SHAPE = (1, 28, 28)

CASES = (
    ("4c3f", "relu", 0.1, 10, "local-lip"),
    ("4c3f", "maxmin", 0.1, 10, "local-lip"),
    ("4c3f", "maxmin", 1.58, 10, "local-lip"),
    ("4c3f", "maxmin", 1.58, 10, "sdp-crown"),
)
COLUMNS = "network activation eps batch call kept repeats seconds kernel_seconds peak_gib times_default".split()


def measure(case: tuple[str, str, float, int, str], kept: bool) -> dict[str, float]:
    """Of this process."""
    from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm, keep_freed_memory

    torch.set_num_threads(1)
    if kept and not keep_freed_memory():
        raise SystemExit("freed memory cannot be kept here (see keep_freed_memory).")
    network, activation, eps, batch, call = case
    torch.manual_seed(0)
    model = build_model(network, SHAPE, 10, activation).eval()
    orthogonal_start(model)
    x = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(1))
    bounded = BoundedModule(model, x[:1])
    ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps))
    with torch.no_grad():
        before = resource.getrusage(resource.RUSAGE_SELF)
        bounded.compute_bounds(x=(ball,), method=call)
        after = resource.getrusage(resource.RUSAGE_SELF)
    kernel = after.ru_stime - before.ru_stime
    seconds = after.ru_utime - before.ru_utime + kernel
    return {"seconds": seconds, "kernel_seconds": kernel, "peak_gib": after.ru_maxrss / 2**20}


@click.command()
@click.option("--repeats", default=2, type=click.IntRange(min=1))
@click.option("--out", default=Path(__file__).parent / "results" / "memory.csv", type=click.Path(path_type=Path))
@click.option("--row", hidden=True)
def main(repeats: int, out: Path, row: str | None) -> None:
    if row is not None:
        print(json.dumps(measure(*json.loads(row))))
        return
    table = Table(out, COLUMNS)
    for case in CASES:
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(repeats):
            for kept, rows in found.items():
                command = [sys.executable, __file__, "--row", json.dumps([case, kept])]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
        default = statistics.median(row["seconds"] for row in found[False])
        for kept, rows in found.items():
            medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
            times = medians["seconds"] / default
            table.append(
                {
                    **dict(zip(COLUMNS, case, strict=False)),
                    **{"kept": kept, "repeats": repeats, "times_default": f"{times:.3f}"},
                    **{name: f"{value:.3f}" for name, value in medians.items()},
                }
            )
            click.echo(f"{' '.join(map(str, case)):30} kept={kept!s:5} {medians['seconds']:.2f} s  {times:.2f} x")


if __name__ == "__main__":
    main()
