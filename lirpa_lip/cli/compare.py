"""``lirpa-lip compare``: several methods on the same network, images and radii, in one table."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.arch import arch_options
from lirpa_lip.cli.tables import CERTIFIED, EPS, WORTH, Column, say, show_table
from lirpa_lip.cli.terminal import NewPath, names_in, option, refuse_foreign
from lirpa_lip.errors import ConfigError, LirpaLipError, NonFiniteError, UnknownMethodError
from lirpa_lip.ranges import COUNT, PROBABILITY, SEED
from lirpa_lip.results import weakest

_DEFAULT = "ibp,crown-ibp,crown,global-product,local-product,local-lip,local-lip-crown"


@dataclass(frozen=True)
class Line:
    """What one method made of one network at one radius. ``None`` where a method has no such number."""

    network: str
    eps: str
    method: str
    samples: int
    clean: float
    certified: float | None = None
    lipschitz: float | None = None
    stable: float | None = None
    seconds_per_sample: float | None = None
    certificate: str = ""
    delta: float = 0.0
    note: str = ""


def _list_methods(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Eager, so that the list can be had before a network is given."""
    if value != "help":
        return value
    from lirpa_lip.comparison import METHODS

    for name, (_, summary) in METHODS.items():
        click.echo(f"{name:20} {summary}")
    ctx.exit()


@click.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.option("--eps", required=True, help="Radii, such as 0.1,8/255; read exactly.")
@click.option(
    "--methods",
    default=_DEFAULT,
    show_default=True,
    is_eager=True,
    callback=_list_methods,
    help="Comma-separated; `--methods help` lists all, and needs nothing else.",
)
@click.option("--dataset", help="Of networks that are no runs.  [default: the run's]")
@click.option("--data-dir", help="Folder of the data.  [default: the run's]")
@option("--limit", int, COUNT, default=100, help="Test samples.")
@option("--batch-size", int, COUNT, default=20)
@option("--steps", int, COUNT, default=20, help="Of optimising methods.")
@click.option("--certificate", type=click.Choice(["auto", "deterministic", "probabilistic"]), default="auto")
@option("--delta", float, PROBABILITY, default=1e-6, help="Failure probability per sample, at most.")
@option("--seed", int, SEED, help="Repeat the random starts of a run.  [default: from the system's entropy]")
@arch_options
@click.option("--out", type=NewPath(), help="Write the table to this CSV file, too, row by row.")
@click.option("--force", is_flag=True, help="Overwrite --out.")
def compare(networks: tuple[str, ...], eps: str, methods: str, out: Path | None, force: bool, **options: Any) -> None:
    """Compare bounds on the same networks and samples.

    NETWORK is a run's folder, one of its checkpoints, or `package.module:factory`, one's own network, called as
    `factory(input_shape=..., classes=...)` (which needs --dataset).

    The mean Lipschitz bound is of the smallest margin's row, logit_y - logit_j with j the runner-up, on the ball.
    """
    from rich.console import Console

    from lirpa_lip.comparison import METHODS
    from lirpa_lip.training.epsilon import parse_epsilons

    console = Console()
    chosen = names_in(methods, "--methods")
    for name in chosen:
        if name not in METHODS:
            raise UnknownMethodError(name, METHODS)
    radii = parse_epsilons(eps)
    if out is not None:
        refuse_foreign([out], lambda path: False, force)
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(out, "w", [item.name for item in fields(Line)])
    lines: list[Line] = []
    for network in dict.fromkeys(networks):
        lines += _progress(network, chosen, radii, out, options)
        if console.is_terminal:
            _show(console, [line for line in lines if line.network == network])
    if not console.is_terminal:
        _show(console, lines)  # one CSV of all networks
    if out is not None:
        say(f"wrote {out}")


def _progress(network: str, methods: list[str], radii: dict, out: Path | None, options: dict) -> list[Line]:
    """The lines of one network, written to the file and counted as they come."""
    from rich.console import Console

    from lirpa_lip.training.progress import Pace, counted

    lines = []
    with counted(Console(stderr=True), network, "lines", Pace(len(methods) * len(radii))) as advance:
        for line in compare_network(network, methods, radii, **options):
            lines.append(line)
            if out is not None:
                _write(out, "a", ["" if value is None else value for value in asdict(line).values()])
            advance(1)
    return lines


def _write(path: Path, mode: str, cells: list[Any]) -> None:
    with path.open(mode, newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(cells)


def compare_network(
    network: str,
    methods: list[str],
    radii: dict,
    dataset: str | None = None,
    data_dir: str | None = None,
    *,
    limit: int = 100,
    batch_size: int = 20,
    steps: int = 20,
    certificate: str = "auto",
    delta: float = 1e-6,
    arch: str | None = None,
    trust_arch: bool = False,
    seed: int | None = None,
) -> Iterator[Line]:
    """One `Line` for each radius and method; ``radii`` as `parse_epsilons` gives them.

    Every method's chance is a function of the seed and its name, so that what does not depend on the radius, such as
    a global constant, reads the same at each. Without a seed it is drawn from the system's entropy.
    """
    import torch

    from lirpa_lip import LocalLipConfig
    from lirpa_lip.comparison import make_method
    from lirpa_lip.norms.draw import fresh_seed, seeds_of
    from lirpa_lip.training.epsilon import rounded_up
    from lirpa_lip.training.sampling import derived_seed

    start = fresh_seed() if seed is None else seed

    torch.manual_seed(derived_seed("compare", seed or 0, "network"))  # a factory may draw its weights
    model, x, labels = _load(network, dataset, data_dir, limit, radii, arch=arch, trust_arch=trust_arch)
    config = LocalLipConfig(certificate=certificate, delta=delta)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model(x)
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteError(f"the output of {network}")
        clean = float((logits.argmax(1) == labels).float().mean())
        for text, exact in radii.items():
            for name in methods:
                head = (network, text, name, len(x), clean)
                torch.manual_seed(derived_seed("compare", start, name))
                try:
                    with seeds_of(derived_seed("compare", start, name)):
                        method = make_method(name, model, x, steps, config)
                        found = _measured(method, model, x, labels, rounded_up(exact, x.dtype), batch_size)
                    yield Line(*head, **found)
                except LirpaLipError as error:  # one method that refuses a network must not end the comparison
                    yield Line(*head, note=str(error))


def _measured(method: Any, model: Any, x: Any, labels: Any, eps: float, batch_size: int) -> dict[str, Any]:
    import torch

    from lirpa_lip.margin import certified, margin_specification

    verdicts, constants, stable, seconds, worths = [], [], [], 0.0, []
    for images, right in zip(x.split(batch_size), labels.split(batch_size)):
        logits = model(images)
        rows = margin_specification(right, logits.shape[1], images.dtype)
        start = time.perf_counter()
        bounds = method.lower(images, rows, eps)
        seconds += time.perf_counter() - start
        verdicts.append(certified(bounds.lower) & (logits.argmax(1) == right))
        worths.append(bounds.worth)
        margins = torch.einsum("bso,bo->bs", rows, logits)
        found = method.lipschitz(images, rows, eps)
        if found is not None:
            constants.append(found.upper.gather(1, margins.argmin(1, keepdim=True)))
            if found.stable is not None and found.neurons:
                stable.append(found.stable.float() / found.neurons)
    kind, delta = weakest(worths)
    return {
        "certified": float(torch.cat(verdicts).float().mean()),
        "lipschitz": float(torch.cat(constants).mean()) if constants else None,
        "stable": float(torch.cat(stable).mean()) if stable else None,
        "seconds_per_sample": seconds / len(x),
        "certificate": kind,
        "delta": delta,
    }


def _load(
    network: str,
    dataset: str | None,
    data_dir: str | None,
    limit: int,
    radii: dict,
    *,
    arch: str | None,
    trust_arch: bool,
) -> Any:
    """The network in eval mode, the first test images and their labels; the radii are compared with their distances."""
    import torch

    from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
    from lirpa_lip.training.data import load_data
    from lirpa_lip.training.models import build_model, check_classifier
    from lirpa_lip.training.run_state import data_of, model_from
    from lirpa_lip.training.separation import warn_of_radii
    from lirpa_lip.training.sources import first_of

    own = ":" in network and not Path(network).exists()
    if own:
        if dataset is None:
            raise ConfigError(f"{network!r} is no run, so its data is not known: name it with --dataset.")
        data = load_data(dataset, data_dir, validation=0)
        model = build_model(network, data.shape, data.classes)
        check_classifier(model, data.shape, data.classes, network)
    else:
        loaded = load_checkpoint(find_checkpoint(Path(network)))
        data = data_of(loaded, data_dir, dataset)
        model = model_from(loaded, arch, trust_arch)
    test = first_of(data.test, limit)
    warn_of_radii(radii.values(), test, data.shape)
    x, labels = test.batch(torch.arange(len(test)))
    return model.eval(), x, labels


def _show(console: Any, lines: list[Line]) -> None:
    """A table; as CSV it is what `--out` holds."""
    first = lines[0]
    noted = "note" if any(line.note for line in lines) else ""
    columns = (
        *(Column("network", ""), EPS, Column("method", "method"), Column("samples", ""), Column("clean", "")),
        replace(CERTIFIED, head="certified\n%"),
        Column("lipschitz", "mean\nLipschitz", "#.4g", "up"),
        Column("stable", "stable\n%", ".1f", "down", scale=100),
        Column("seconds_per_sample", "ms per\nsample", ".3g", scale=1000),
        *WORTH,
        Column("note", noted),
    )
    rows = [[getattr(line, column.name) for column in columns] for line in lines]
    title = f"{first.network}: {first.samples} samples, clean {first.clean:.2%}"
    show_table(title if console.is_terminal else "", columns, rows, console)
