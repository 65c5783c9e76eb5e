"""``lirpa-lip certify``: radii of a whole data set, with a summary and a figure."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.arch import arch_options
from lirpa_lip.cli.tables import CERTIFIED, EPS, PGD, WORTH, say, show_table
from lirpa_lip.cli.terminal import MethodName, NewPath, option, refuse_results_of_others
from lirpa_lip.ranges import COUNT, NOT_NEGATIVE, PROBABILITY, SEED

_WRITTEN = ("certificates.csv", "summary.json", "certified.png")


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--eps", help="Radii, such as 0.5,36/255; read exactly.  [default: the run's]")
@click.option("--bound", type=MethodName("certify"), default="sdp-crown", show_default=True, help="What certifies.")
@click.option(
    "--certificate",
    type=click.Choice(["auto", "deterministic", "probabilistic"]),
    default="auto",
    show_default=True,
    help="What the norms must be worth.",
)
@option("--delta", float, PROBABILITY, default=1e-6, help="Failure probability per sample, at most.")
@option("--radius-steps", int, NOT_NEGATIVE, default=2, help="Verdicts spent on the radius of a sample, at most.")
@click.option(
    "--radius",
    type=click.Choice(["search", "none"]),
    default="search",
    show_default=True,
    help="Search each sample's radius, or try those of --eps only.",
)
@click.option("--image-box", is_flag=True, help="Certify images in [0, 1] only, not the whole ball.")
@option("--pgd-steps", int, NOT_NEGATIVE, default=100, help="Steps of the attack; 0 for none.")
@click.option("--inference", type=click.Choice(["float32", "bfloat16"]), help="Count the rounding of this arithmetic.")
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--data-dir", help="Folder of the data.  [default: the run's]")
@option("--limit", int, COUNT, help="Certify this many samples at most.")
@option("--batch-size", int, COUNT, help="Samples at once, at most.  [default: 10, on a GPU 100]")
@click.option("--max-memory", metavar="SIZE", help="What it may take, such as 4GiB.  [default: half of what is free]")
@option("--seed", int, SEED, default=0, help="Of the attack's random starts.")
@arch_options
@click.option("--out", type=NewPath(), help="Folder for the results.  [default: in the run's folder]")
@click.option("--force", is_flag=True, help="Overwrite files in --out that no certification wrote.")
def certify(checkpoint: Path, **options: Any) -> None:
    """Certify a trained network: CHECKPOINT is a run's folder, or one of its checkpoints.

    Writes one CSV row per sample, a summary, and a figure of certified accuracy against the radius. Started again, it
    goes on where it was stopped; with a larger --limit, or more radii, it adds to what is there. Several processes:
    `torchrun --nproc-per-node 4 -m lirpa_lip.cli certify ...`.
    """
    from rich.console import Console

    from lirpa_lip.memory_limit import memory_limit
    from lirpa_lip.training.certification import certify_shard, read_rows, share_of
    from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
    from lirpa_lip.training.epsilon import parse_epsilons
    from lirpa_lip.training.lock import FolderLock
    from lirpa_lip.training.processes import process_state
    from lirpa_lip.training.progress import Pace, counted
    from lirpa_lip.training.run_state import config_of, data_of, model_from
    from lirpa_lip.training.sources import first_of

    path = find_checkpoint(checkpoint)
    loaded = load_checkpoint(path)
    settings = _settings(options, config_of(loaded).radius)
    bundle = data_of(loaded, options["data_dir"])
    state = process_state()
    model = model_from(loaded, options["arch"], options["trust_arch"]).to(state.device)
    data = getattr(bundle, options["split"])
    data = data if options["limit"] is None else first_of(data, options["limit"])
    _check_data(data, bundle, settings, options["split"])
    out = options["out"] or path.parent.parent / "certificates" / f"{settings.bound}-{options['split']}"
    refuse_results_of_others(out, "certify.json", _WRITTEN, options["force"])
    size = options["batch_size"] or (100 if state.device.type == "cuda" else 10)
    place = (size, state.process_index, state.num_processes)
    console = Console(stderr=True, quiet=not state.is_main_process)
    limit = memory_limit(options["max_memory"], state.device, state.num_processes)
    with FolderLock(out, wanted=state.is_main_process), _rows_are_kept(out), limit:
        wanted = set(parse_epsilons(settings.eps).values())
        there = {row.index for row in read_rows(out) if wanted <= set(row.eps)}
        mine = [index for part in share_of(len(data), *place) for index in part.tolist()]
        pace = Pace(len(mine), sum(index in there for index in mine))
        with counted(console, "certifying", "samples", pace) as advance:
            identity, (batch_size, rank, processes) = _identity(model, bundle, options["split"]), place
            certify_shard(
                *(model, data, settings, out, identity),
                batch_size=batch_size,
                rank=rank,
                processes=processes,
                progress=advance,
            )
        state.wait_for_everyone()
        if state.is_main_process:
            network = options["arch"] or config_of(loaded).arch
            _report(settings, out, len(data), f"{network} ({path.name}), {bundle.name} {options['split']}")


def _settings(options: dict[str, Any], eps: str) -> Any:
    from lirpa_lip.training.certification import CertifySettings

    names = ("bound", "certificate", "delta", "radius_steps", "image_box", "pgd_steps", "seed", "inference")
    chosen = {name: options[name] for name in names}
    if options["radius"] == "none":
        chosen["radius_steps"] = 0
    return CertifySettings(options["eps"] or eps, **chosen)


def _check_data(data: Any, bundle: Any, settings: Any, split: str) -> None:
    from lirpa_lip.errors import DataError
    from lirpa_lip.training.epsilon import parse_epsilons
    from lirpa_lip.training.separation import warn_of_radii

    if not len(data):
        raise DataError(f"the {split} split holds no images; choose another --split.")
    warn_of_radii(parse_epsilons(settings.eps).values(), data, bundle.shape)


def _identity(model: Any, bundle: Any, split: str) -> str:
    from lirpa_lip.training.certification import identity_of

    return identity_of(model, f"{bundle.name}/{split}/{bundle.class_names}")


@contextmanager
def _rows_are_kept(out: Path) -> Iterator[None]:
    """Says so, and how to go on, where somebody stops the run or another process of it is lost."""
    from lirpa_lip.errors import LirpaLipError, RunInterruptedError
    from lirpa_lip.training.interrupts import sigterm_as_interrupt
    from lirpa_lip.training.processes import lost_process, process_count
    from lirpa_lip.training.rows import read_rows

    def stopped(why: str, number: int) -> RunInterruptedError:
        kept = f"{len(read_rows(out))} samples are certified and kept in {out}"
        return RunInterruptedError(f"{why}: {kept}. The same command goes on from there.", number)

    try:
        with sigterm_as_interrupt():
            yield
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else int(signal.SIGINT)
        raise stopped("stopped", number) from error
    except RuntimeError as error:
        if isinstance(error, LirpaLipError) or process_count() == 1 or not lost_process(error):
            raise
        raise stopped("another process was lost", int(signal.SIGTERM)) from error


def _report(settings: Any, out: Path, count: int, network: str) -> None:
    from lirpa_lip.plots.certified_accuracy import draw_certified_accuracy
    from lirpa_lip.training.certification import read_rows, write_merged
    from lirpa_lip.training.epsilon import parse_epsilon

    summary = write_merged(out, settings, count)
    title = f"{summary['samples']} samples, clean {summary['clean']:.2%}, bound {settings.bound}"
    worth = (summary["certificate"], summary["delta_per_sample"])
    lines = [(r["eps"], r["pgd"], r["certified"], *worth) for r in summary["table"]]
    show_table(title, (EPS, PGD, CERTIFIED, *WORTH), lines)
    attacked = {float(parse_epsilon(r["eps"])): r["pgd"] for r in summary["table"] if r["pgd"] is not None}
    rows = [row for row in read_rows(out) if row.index < count]
    draw_certified_accuracy({settings.bound: rows}, out / "certified.png", {settings.bound: attacked}, network)
    say(f"wrote {out / 'certificates.csv'}, summary.json and certified.png")
