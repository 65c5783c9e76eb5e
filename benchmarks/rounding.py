"""What do the rounding terms of certificates cost, in time and in tightness?

One CSV row per network and method: the same bounds of all margins, in one process and in turn, as they are served and
without the error terms of every node and row (`lirpa_lip.network.rounding`), which is no certificate. ``ratio`` is of
medians of process time, ``loosened`` the largest ``(margin without − margin with) / max(1, |margin without|)``,
``tightened`` the largest the other way: `sdp-crown` optimises slopes, by steps that take another way after any change
in a last place, so that its margins differ in both directions by what it has not yet gained. ``added`` is what the
error terms add to the deviation of a row at the same slopes and intervals, over max(1, |deviation|): the largest of all
rows and steps.

    python benchmarks/rounding.py
    python benchmarks/rounding.py --networks sdpcrown_mnist_mlp --images 2 --repeats 3
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import torch
from lib.table import Table
from sdp_crown import RADII, load
from torch import Tensor

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.local import propagate
from lirpa_lip.margin import margin_specification
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.network.rounding import RowErrors
from lirpa_lip.training.epsilon import parse_epsilon

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "network eps method images repeats cpu_seconds cpu_seconds_without ratio loosened tightened mean_change added"
).split()


@contextmanager
def without_rounding() -> Iterator[None]:
    counted = propagate.NodeErrors
    propagate.NodeErrors = lambda *_: None  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        propagate.NodeErrors = counted  # type: ignore[misc]


@contextmanager
def recording(shares: list[float]) -> Iterator[None]:
    """Notes what every row's error terms add to it."""
    added = RowErrors.added

    def noted(self: RowErrors, bound: Tensor, graph: NetworkGraph) -> Tensor:
        total = added(self, bound, graph)
        shares.append(float(((total - bound).detach() / bound.abs().clamp(min=1)).max()))
        return total

    RowErrors.added = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        RowErrors.added = added  # type: ignore[method-assign]


def measure(name: str, method: str, images: int, repeats: int) -> dict[str, object]:
    """A row of the table."""
    model, x, y = load(name)
    x, y, eps = x[:images], y[:images], float(parse_epsilon(RADII[name][0]))
    bounded = BoundedModule(model, x, bound_opts={"local_lip": LocalLipConfig(seed=0)})
    ball, rows = PerturbationLpNorm(norm=2, eps=eps), margin_specification(y, model(x).shape[1])

    def margins() -> tuple[float, Tensor]:
        start = time.process_time()
        with torch.no_grad():
            found, _ = bounded.compute_bounds(x=(BoundedTensor(x, ball),), C=rows, method=method, bound_upper=False)
        return time.process_time() - start, found.double()

    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        spent, served = margins()
        with without_rounding():
            other, bare = margins()
        seconds[0].append(spent)
        seconds[1].append(other)
    shares: list[float] = []
    with recording(shares):
        margins()
    taken = [median(part[1:]) for part in seconds]  # the first warms up
    change = (bare - served) / bare.abs().clamp(min=1)
    row = {"network": name, "eps": RADII[name][0], "method": method, "images": images, "repeats": repeats}
    return row | {
        "cpu_seconds": f"{taken[0]:.4f}",
        "cpu_seconds_without": f"{taken[1]:.4f}",
        "ratio": f"{taken[0] / taken[1]:.3f}",
        "loosened": f"{float(change.max()):.2e}",
        "tightened": f"{float((-change).max()):.2e}",
        "mean_change": f"{float(change.mean()):.2e}",
        "added": f"{max(shares):.2e}",
    }


@click.command()
@click.option("--networks", default=",".join(RADII), help="Comma-separated.")
@click.option("--methods", default="local-lip,sdp-crown", help="Comma-separated.")
@click.option("--images", default=4, type=click.IntRange(min=1))
@click.option("--repeats", default=7, type=click.IntRange(min=1))
@click.option("--out", default=RESULTS / "rounding.csv", type=click.Path(path_type=Path))
def main(networks: str, methods: str, images: int, repeats: int, out: Path) -> None:
    torch.set_num_threads(1)
    table = Table(out, COLUMNS)
    for name in networks.split(","):
        for method in methods.split(","):
            try:
                row = measure(name, method, images, repeats)
            except FileNotFoundError as error:
                click.echo(f"{name}: left out, {error}")
                continue
            click.echo(row)
            table.append(row)


if __name__ == "__main__":
    main()
