"""``lirpa-lip lipschitz``: local Lipschitz constants of a trained network by every method, with the gap that is
left."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.arch import arch_options
from lirpa_lip.cli.tables import WORTH, Column, Table, say
from lirpa_lip.cli.terminal import NewPath, begins_with, names_in, option, refuse_foreign
from lirpa_lip.methods import names_at
from lirpa_lip.ranges import COUNT, NOT_NEGATIVE, Range
from lirpa_lip.results import Certificate, weakest

_NORMS = {"inf": math.inf, "2": 2, "1": 1}
_LOCAL = names_at("local_lipschitz", "local")
_METHODS = (*names_at("local_lipschitz", "jacobian"), *_LOCAL)
_COLUMNS = (
    Column("sample", "sample"),
    Column("method", "method"),
    Column("upper", "upper", "#.5g", "up"),
    Column("lower", "lower", "#.5g", "down"),
    Column("upper_over_lower", "upper /\nlower", "#.4g", "up"),
    *WORTH,
    Column("seconds", "s", ".1f"),
)


@dataclass(frozen=True)
class Constant:
    """What one method found at one sample: the constant from above and from below, and what that is worth."""

    sample: int
    method: str
    upper: float
    lower: float
    worth: Certificate
    seconds: float

    def cells(self) -> list[str | int | float | None]:
        gap = self.upper / self.lower if self.lower > 0 else None
        head = (self.sample, self.method, self.upper, self.lower, gap)
        return [*head, *self.worth, round(self.seconds, 3)]


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
@option("--memory", float, Range(0, 2**20, open_low=True), default=4.0, help="GiB of waiting domains.")
@click.option("--heuristic", type=click.Choice(["gap", "width", "area", "strong"]), default="gap", show_default=True)
@click.option("--intermediate", type=click.Choice(["ibp", "crown", "alpha-crown"]), default="crown", show_default=True)
@click.option("--image-box/--no-image-box", default=True, show_default=True, help="Only images in [0, 1].")
@option("--limit", int, COUNT, default=5, help="Samples of the test set.")
@click.option("--data-dir", help="Folder of the data.  [default: the run's]")
@click.option("--state", type=NewPath(), help="File to keep branch and bound in, and to go on from.")
@arch_options
@click.option("--out", type=NewPath(), help="CSV file for the results, written row by row.")
@click.option("--force", is_flag=True, help="Overwrite --out whatever it holds.")
def lipschitz(checkpoint: Path, **options: Any) -> None:
    """Local Lipschitz constants of a trained network: CHECKPOINT is a run's folder, or one of its checkpoints.

    Upper bounds hold on the whole region, and are worth what their kind says; lower ones are rates of change found in
    it. Into a pipe the table is CSV, each row as soon as it is known. `--out` holds the samples without their means.
    """
    import torch
    from rich.console import Console

    from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
    from lirpa_lip.training.epsilon import parse_epsilon, rounded_up
    from lirpa_lip.training.run_state import data_of, model_from
    from lirpa_lip.training.sources import first_of

    eps, methods, console = rounded_up(parse_epsilon(options["eps"])), _chosen(options), Console()
    loaded = load_checkpoint(find_checkpoint(checkpoint))
    samples = first_of(data_of(loaded, options["data_dir"]).test, options["limit"])
    title = f"ℓ{options['norm']} constants over ℓ{options['region']} regions of radius {options['eps']}"
    found: list[Constant] = []
    with _file(options["out"], options["force"]) as write:
        table = Table(_COLUMNS, title, console)
        for index in range(len(samples)):
            x = samples.batch(torch.tensor([index]))[0]
            for method in methods:
                model = model_from(loaded, options["arch"], options["trust_arch"])
                constant = bound_sample(model, x, eps, method, index, options=options, console=console)
                found.append(constant)
                table.add(*constant.cells(), new_section=method == methods[0])
                write(constant)
    for number, row in enumerate(means(found)):
        table.add("mean", *row[1:], new_section=number == 0)
    table.close()
    if options["out"]:
        say(f"wrote {options['out']}")


@contextmanager
def _file(path: Path | None, force: bool) -> Iterator[Any]:
    """Gives the function that writes a constant, at once, to the CSV file."""
    if path is None:
        yield lambda constant: None
        return
    head = ",".join(column.name for column in _COLUMNS)
    refuse_foreign([path], begins_with(head), force)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(head + "\n")
        file.flush()

        def write(constant: Constant) -> None:
            csv.writer(file, lineterminator="\n").writerow(["" if c is None else c for c in constant.cells()])
            file.flush()

        yield write


def means(found: list[Constant]) -> list[list[str | int | float | None]]:
    """Per method the means over the samples, with the weakest kind and the largest δ among them."""
    rows = []
    for method in dict.fromkeys(c.method for c in found):
        mine = [c for c in found if c.method == method]
        upper, lower, seconds = (sum(getattr(c, n) for c in mine) / len(mine) for n in ("upper", "lower", "seconds"))
        rows.append(Constant(-1, method, upper, lower, weakest(c.worth for c in mine), seconds).cells())
    return rows


def _chosen(options: dict[str, Any]) -> list[str]:
    both = options["norm"] == options["region"] == "2"
    if options["methods"] is not None:
        chosen = names_in(options["methods"], "--methods")
        for method in chosen:
            if method not in _METHODS:
                raise click.BadParameter(f"{method!r}; choose from: {', '.join(_METHODS)}.", param_hint="--methods")
            if method in _LOCAL and not both:
                raise click.BadParameter(f"{method} needs --norm 2 and --region 2.", param_hint="--methods")
        return chosen
    return [m for m in _METHODS if m not in _LOCAL or both]


def bound_sample(
    model: Any, x: Any, eps: float, method: str, index: int, *, options: dict[str, Any], console: Any
) -> Constant:
    """The constant of one sample by one method."""
    import torch

    from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
    from lirpa_lip.search.file import load_states, save_states

    ends = (0.0, 1.0) if options["image_box"] else (-math.inf, math.inf)
    if options["region"] == "2":
        region = PerturbationLpNorm(norm=2, eps=eps)
    else:
        wide = x.double()
        region = PerturbationLpNorm(x_L=(wide - eps).clamp(min=ends[0]), x_U=(wide + eps).clamp(max=ends[1]))
    settings = {"image_box": ends} if options["image_box"] and options["region"] == "2" else {}
    bounded = BoundedModule(model, torch.empty_like(x), bound_opts={"local_lip": settings})
    extra: dict[str, Any] = {}
    kept: Path | None = options["state"]
    states = load_states(kept) if kept is not None and kept.exists() else {}
    key = (index, eps, options["region"], options["norm"], options["per_output"])
    if method not in _LOCAL:
        extra["intermediate"] = options["intermediate"]
    if method == "clarke-jacobian" and options["time_limit"] > 0:
        extra |= {
            "time_limit": options["time_limit"],
            "max_domains": options["max_domains"],
            "heuristic": options["heuristic"],
            "memory": max(1, int(options["memory"] * 2**30)),
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
    if kept is not None and "state" in result.details:
        save_states(kept, {**states, key: result.details["state"]})
    name = f"{method} + BaB" if "state" in result.details else method
    upper, lower = (float(t.detach().max()) for t in (result.upper, result.lower))
    return Constant(index, name, upper, lower, result.worth, seconds)


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
