"""``python -m fuzz N`` in the folder of the tests: N random cases, or one again with ``--case``."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version

import click
import torch
from rich.progress import track

from .kinds import KINDS
from .run import Outcome, kind_of, report, timed


def _chunk(arguments: tuple[int, int, int, str | None]) -> tuple[list[Outcome], float]:
    torch.set_num_threads(1)
    return timed(*arguments)


@click.command()
@click.argument("count", type=click.IntRange(min=1), default=200)
@click.option("--seed", default=0, help="Of all cases.")
@click.option("--first", default=0, help="Number of the first case.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only cases of this kind.")
@click.option("--case", type=int, help="Repeat one case, with its traceback.")
@click.option("--processes", default=2, type=click.IntRange(min=1), help="To share the cases among.")
def main(count: int, seed: int, first: int, kind: str | None, case: int | None, processes: int) -> None:
    """Draws COUNT random models, regions and settings and holds every bound against independent oracles."""
    if case is not None:
        kind = kind or kind_of(case)
        rng = random.Random(f"{seed} {kind} {case}")
        torch.manual_seed(rng.randrange(2**31))
        click.echo(KINDS[kind][0](rng))
        return
    size = 50
    parts = [(seed, start, min(size, first + count - start), kind) for start in range(first, first + count, size)]
    outcomes: list[Outcome] = []
    seconds = 0.0
    with ProcessPoolExecutor(processes) as pool:
        for found, taken in track(
            pool.map(_chunk, parts), total=len(parts), description="cases", disable=not sys.stderr.isatty()
        ):
            outcomes += found
            seconds += taken
            for outcome in found:
                if outcome.failed:
                    click.echo(f"{outcome.status}: {outcome.kind} {outcome.case}: {outcome.note[:200]}", err=True)
    click.echo(f"auto_LiRPA {version('auto_LiRPA')}, torch {torch.__version__}")
    click.echo(report(outcomes, seed, seconds))
    sys.exit(1 if any(o.failed for o in outcomes) else 0)


if __name__ == "__main__":
    main()
