"""``lirpa-lip monotonicity``: which features a network on a table is certainly increasing or decreasing in."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.tables import Cell, Column, say, show_table
from lirpa_lip.cli.terminal import NewPath, Number, begins_with, names_in, option, refuse_foreign
from lirpa_lip.ranges import COUNT, NOT_NEGATIVE, SEED
from lirpa_lip.training.tabular import TABLES

_HEAD = ("sample", "feature", "verdict", "slope_lower", "slope_upper")
VERDICTS = {
    "increasing": "#2a9d8f",
    "decreasing": "#e76f51",
    "constant": "#8d99ae",
    "neither": "#e9c46a",
    "unknown": "#d9d9d9",
}


@click.command()
@click.option("--data", type=click.Choice(list(TABLES)), default="diabetes", show_default=True, help="Which table.")
@option("--samples", int, COUNT, default=20, help="Test samples to look at.")
@click.option("--features", help="Columns, by name or number, separated by commas.  [default: all]")
@click.option(
    "--range",
    "reach",
    type=Number(float, NOT_NEGATIVE),
    default=1.0,
    show_default=True,
    help="How much of its range the feature in question may move by, either way (the rest of the sample fixed).",
)
@option("--eps", float, NOT_NEGATIVE, default=0.0, help="How far the other features may move.")
@option(
    "--time-limit",
    float,
    NOT_NEGATIVE,
    default=1.0,
    help="Seconds of branch and bound for each feature, over all samples; 0 for none.",
)
@option("--hidden", int, COUNT, default=32, help="Width of the network's two layers.")
@option("--epochs", int, NOT_NEGATIVE, default=60, help="Epochs of its training.")
@option("--seed", int, SEED, default=0)
@click.option(
    "--out",
    type=NewPath(),
    default=Path("monotonicity"),
    show_default=True,
    help="Folder for monotonicity.csv and monotonicity.png.",
)
@click.option("--force", is_flag=True, help="Overwrite files in --out that are no such results.")
def monotonicity(data: str, samples: int, features: str | None, **options: Any) -> None:
    """Train a network on a table and certify, feature by feature, where it rises and where it falls.

    "increasing" and "decreasing" are certificates for every point of the sample's region; "neither" was refuted by
    slopes of both signs; "unknown" is neither proved nor refuted.
    """
    from lirpa_lip.training.tabular import load_table, train_mlp

    out = options["out"]
    refuse_foreign([out / "monotonicity.csv"], begins_with(",".join(_HEAD)), options["force"])
    if not (out / "monotonicity.csv").exists():
        refuse_foreign([out / "monotonicity.png"], lambda path: False, options["force"])
    out.mkdir(parents=True, exist_ok=True)
    table = load_table(data)
    net, score, held = train_mlp(table, options["hidden"], options["epochs"], options["seed"])
    chosen = _columns(table.features, features)
    x = table.x[held[:samples]]
    say(f"{data}: {len(table.x)} rows, test {'accuracy' if table.classification else 'R²'} {score:.3f}")
    counts = {name: dict.fromkeys(VERDICTS, 0) for name in (table.features[j] for j in chosen)}
    rows = []
    for j in chosen:
        for k, (verdict, low, high) in enumerate(
            certify_feature(net, x, j, options["reach"], options["eps"], time_limit=options["time_limit"])
        ):
            counts[table.features[j]][verdict] += 1
            rows.append((int(held[k]), table.features[j], verdict, low, high))
    columns = (Column("feature", "feature"), *(Column(name, f"{name} %", ".0f", scale=100) for name in VERDICTS))
    shares: list[list[Cell]] = [
        [name, *(found[v] / max(1, len(x)) for v in VERDICTS)] for name, found in counts.items()
    ]
    show_table(f"{len(x)} samples, share of samples per verdict", columns, shares)
    with open(out / "monotonicity.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_HEAD)
        writer.writerows(rows)
    draw(
        counts,
        out / "monotonicity.png",
        f"{data}, ReLU network of 2 × {options['hidden']}, n = {len(x)}: certified slopes (deterministic)\n"
        f"feature ± {options['reach']:g}, others ± {options['eps']:g} of their ranges",
    )
    say(f"wrote {out / 'monotonicity.csv'} and monotonicity.png")


def _columns(names: tuple[str, ...], wanted: str | None) -> list[int]:
    if wanted is None:
        return list(range(len(names)))
    found = []
    for item in names_in(wanted, "--features"):
        if item in names:
            found.append(names.index(item))
        elif item.isascii() and item.isdigit() and int(item[:9]) < len(names):
            found.append(int(item))
        else:
            raise click.BadParameter(
                f"{item!r} is no column; choose from: {', '.join(names)}.", param_hint="--features"
            )
    return list(dict.fromkeys(found))  # by name and by number


def certify_feature(
    net: Any, x: Any, feature: int, reach: float, eps: float, *, time_limit: float
) -> list[tuple[str, float, float]]:
    """Per sample the verdict on one feature and the certified bounds of its slope."""
    import torch

    from lirpa_lip import BoundedModule
    from lirpa_lip.jacobian.options import ClarkeOptions
    from lirpa_lip.local.bounds import network_graph
    from lirpa_lip.regions.region import Region
    from lirpa_lip.search.monotonicity import monotone_features

    graph = network_graph(BoundedModule(net, x[:1])).to(torch.float64)
    centre = x.double()
    width = torch.full_like(centre, eps)
    width[:, feature] = reach
    inputs = Region.box(centre, (centre - width).clamp(min=0), (centre + width).clamp(max=1))
    seed = torch.ones(len(x), 1, 1, dtype=torch.float64)
    found = monotone_features(graph, inputs, seed, [feature], ClarkeOptions(time_limit=time_limit))
    return [(found.verdict(k, 0, 0), float(found.lower[k, 0, 0]), float(found.upper[k, 0, 0])) for k in range(len(x))]


def draw(counts: dict[str, dict[str, int]], path: Path, title: str) -> None:
    """A stacked bar per feature: the share of samples with each verdict."""
    from lirpa_lip.plots import stacked_shares
    from lirpa_lip.plots.canvas import save

    figure = stacked_shares(counts, VERDICTS, "samples")
    figure.axes[0].set_title(title)
    save(figure, path)
