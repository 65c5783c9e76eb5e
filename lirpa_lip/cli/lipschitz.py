"""``lirpa-lip lipschitz``: local Lipschitz constants of a trained network by every method, with the gap that is
left."""

from __future__ import annotations

import csv
import math
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.terminal import begins_with, option, refuse_foreign
from lirpa_lip.methods import names_at
from lirpa_lip.ranges import COUNT, NOT_NEGATIVE, POSITIVE

_NORMS = {"inf": math.inf, "2": 2, "1": 1}
_LOCAL = names_at("local_lipschitz", "local")
_METHODS = (*names_at("local_lipschitz", "jacobian"), *_LOCAL)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--eps", default="1/255", show_default=True, help="Radius of the region, in pixels; fractions are read exactly."
)
@click.option("--region", type=click.Choice(["inf", "2"]), default="inf", show_default=True, help="Box or ℓ₂ ball.")
@click.option(
    "--norm", type=click.Choice(list(_NORMS)), default="inf", show_default=True, help="Of the Lipschitz constant."
)
@click.option("--per-output", is_flag=True, help="The largest constant of a single output, not the whole network's.")
@click.option("--methods", help="Separated by commas.  [default: all that exist for the norm and region]")
@option("--time-limit", float, NOT_NEGATIVE, default=10.0, help="Seconds of branch and bound per sample; 0 for none.")
@option("--max-domains", int, COUNT, default=100_000)
@option("--memory", float, POSITIVE, default=4.0, help="GiB that waiting domains may take.")
@click.option("--heuristic", type=click.Choice(["gap", "width", "area", "strong"]), default="gap", show_default=True)
@click.option("--intermediate", type=click.Choice(["ibp", "crown", "alpha-crown"]), default="crown", show_default=True)
@click.option("--image-box/--no-image-box", default=True, show_default=True, help="Only images in [0, 1].")
@option("--limit", int, COUNT, default=5, help="Samples of the test set.")
@click.option("--data-dir", help="Folder of the data.  [default: the run's]")
@click.option("--state", type=click.Path(path_type=Path), help="File to keep branch and bound in, and to go on from.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV file for the results, written row by row.")
@click.option("--force", is_flag=True, help="Overwrite --out although it is no such table.")
def lipschitz(checkpoint: Path, **options: Any) -> None:
    """Local Lipschitz constants of a trained network: CHECKPOINT is a run's folder, or one of its checkpoints."""
    from rich.console import Console
    from rich.table import Table

    from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
    from lirpa_lip.training.epsilon import parse_epsilon, rounded_up
    from lirpa_lip.training.run_state import data_of, model_from
    from lirpa_lip.training.sources import first_of

    loaded = load_checkpoint(find_checkpoint(checkpoint))
    samples = first_of(data_of(loaded, options["data_dir"]).test, options["limit"])
    eps, console = rounded_up(parse_epsilon(options["eps"])), Console()
    methods = _chosen(options)
    shown = Table(title=f"ℓ{options['norm']} constants over ℓ{options['region']} regions of radius {options['eps']}")
    for name in ("sample", "method", "upper", "lower", "upper / lower", "seconds"):
        shown.add_column(name, justify="left" if name == "method" else "right")
    write = _table(options["out"], options["force"])
    import torch

    for index in range(len(samples)):
        x = samples.batch(torch.tensor([index]))[0]
        for method in methods:
            row = bound_sample(model_from(loaded), x, eps, method, index, options, console)
            write((index, *row))
            gap = row[1] / row[2] if row[2] > 0 else math.inf
            shown.add_row(str(index), row[0], f"{row[1]:.5g}", f"{row[2]:.5g}", f"{gap:.4g}", f"{row[3]:.1f}")
    console.print(shown)


def _table(path: Path | None, force: bool) -> Callable[[tuple], None]:
    """Begins the CSV file; returns the function that adds a row to it."""
    if path is None:
        return lambda row: None
    head = ("sample", "method", "upper", "lower", "seconds")
    refuse_foreign([path], begins_with(",".join(head)), force)

    def write(row: tuple, mode: str = "a") -> None:
        with path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)

    write(head, "w")
    return write


def _chosen(options: dict[str, Any]) -> list[str]:
    if options["methods"]:
        chosen = [m.strip() for m in options["methods"].split(",")]
        for method in chosen:
            if method not in _METHODS:
                raise click.BadParameter(f"{method!r}; choose from: {', '.join(_METHODS)}.", param_hint="--methods")
        return chosen
    both = options["norm"] == options["region"] == "2"
    return [m for m in _METHODS if m not in _LOCAL or both]


def bound_sample(
    model: Any, x: Any, eps: float, method: str, index: int, options: dict[str, Any], console: Any
) -> tuple:
    """Method, upper and lower bound, and seconds, of one sample."""
    import torch

    from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm

    ends = (0.0, 1.0) if options["image_box"] else (-math.inf, math.inf)
    if options["region"] == "2":
        region = PerturbationLpNorm(norm=2, eps=eps)
    else:
        wide = x.double()
        region = PerturbationLpNorm(x_L=(wide - eps).clamp(min=ends[0]), x_U=(wide + eps).clamp(max=ends[1]))
    settings = {"image_box": ends} if options["image_box"] and options["region"] == "2" else {}
    bounded = BoundedModule(model, torch.empty_like(x), bound_opts={"local_lip": settings})
    extra: dict[str, Any] = {}
    states: dict = _read(options["state"])
    key = (index, eps, options["region"], options["norm"], options["per_output"])
    if method not in _LOCAL:
        extra["intermediate"] = options["intermediate"]
    if method == "clarke-jacobian" and options["time_limit"] > 0:
        extra |= {
            "time_limit": options["time_limit"],
            "max_domains": options["max_domains"],
            "heuristic": options["heuristic"],
            "memory": int(options["memory"] * 2**30),
            "resume": states.get(key),
            "progress": reporter(console, index),
        }
    outputs = model(x).flatten(1).shape[1]
    c = torch.eye(outputs).unsqueeze(0) if options["per_output"] else None
    started = time.monotonic()
    result = bounded.local_lipschitz(
        (BoundedTensor(x, region),), C=c, method=method, norm=_NORMS[options["norm"]], **extra
    )
    seconds = time.monotonic() - started
    if options["state"] and "state" in result.details:
        _write(options["state"], {**states, key: result.details["state"]})
    name = f"{method} + BaB" if "state" in result.details else method
    return name, *(float(t.detach().max()) for t in (result.upper, result.lower)), seconds


def reporter(console: Any, index: int) -> Any:
    """Prints where branch and bound stands, on a terminal over the same line."""

    def report(progress: Any) -> None:
        if console.is_terminal:
            upper, lower = float(progress.upper.max()), float(progress.lower.max())
            parts = (
                f"sample {index}: upper {upper:.5g}",
                f"lower {lower:.5g}",
                f"waiting {progress.waiting}",
                f"visited {progress.visited}",
                f"{progress.seconds:.0f} s",
            )
            console.print("  ".join(parts), end="\r", highlight=False)

    return report


def _read(path: Path | None) -> dict:
    """States kept before. A pickle runs code when it is read: only files of one's own belong here."""
    if path is None or not path.exists():
        return {}
    with open(path, "rb") as file:
        return pickle.load(file)


def _write(path: Path, states: dict) -> None:
    scratch = path.with_name(path.name + ".writing")
    with open(scratch, "wb") as file:
        pickle.dump(states, file)
    os.replace(scratch, path)
