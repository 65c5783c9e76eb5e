"""``lirpa-lip certify``: radii of a whole data set, with a summary and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lirpa_lip.cli.arch import arch_options
from lirpa_lip.cli.tables import CERTIFIED, EPS, PGD, WORTH, say, show_table
from lirpa_lip.training.certification import (
    CertifySettings,
    certify_shard,
    identity_of,
    read_rows,
    write_merged,
)
from lirpa_lip.training.certifiers import CERTIFIERS


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--eps", help="Radii, such as 0.5,36/255; read exactly.  [default: the run's]")
@click.option("--bound", type=click.Choice(CERTIFIERS), default="sdp-crown", show_default=True, help="What certifies.")
@click.option(
    "--certificate",
    type=click.Choice(["auto", "deterministic", "probabilistic"]),
    default="auto",
    show_default=True,
    help="What the norms must be worth.",
)
@click.option("--delta", type=float, default=1e-6, show_default=True, help="Failure probability per sample, at most.")
@click.option("--radius-steps", type=int, default=4, show_default=True, help="Bisections for the radius of a sample.")
@click.option("--image-box", is_flag=True, help="Certify images in [0, 1] only, not the whole ball.")
@click.option("--pgd-steps", type=int, default=100, show_default=True, help="Steps of the attack; 0 for none.")
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--data-dir", help="Folder of the data.  [default: the run's]")
@click.option("--limit", type=int, help="Certify this many samples at most.")
@click.option("--batch-size", type=int, default=100, show_default=True)
@arch_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: in the run's folder]")
def certify(checkpoint: Path, **options: Any) -> None:
    """Certify a trained network: CHECKPOINT is a run's folder, or one of its checkpoints.

    Writes one CSV row per sample, a summary, and a figure of certified accuracy against the radius. Started again, it
    goes on where it was stopped. Several processes: `torchrun --nproc-per-node 4 -m lirpa_lip.cli certify ...`.
    """
    from rich.console import Console

    from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
    from lirpa_lip.training.data import load_data
    from lirpa_lip.training.processes import process_state
    from lirpa_lip.training.run_state import model_from
    from lirpa_lip.training.sources import first_of

    path = find_checkpoint(checkpoint)
    loaded = load_checkpoint(path)
    state, config = process_state(), loaded.state["config"]
    model = model_from(loaded, options["arch"], options["trust_arch"]).to(state.device)
    data_dir = options["data_dir"] or config["data_dir"]
    bundle = load_data(config["dataset"], data_dir, config["validation"], config["seed"], config["image_size"])
    data = getattr(bundle, options["split"])
    data = data if options["limit"] is None else first_of(data, options["limit"])
    names = ("bound", "certificate", "delta", "radius_steps", "image_box", "pgd_steps")
    settings = CertifySettings(options["eps"] or config["eps"], **{name: options[name] for name in names})
    out = options["out"] or path.parent.parent / "certificates" / f"{settings.bound}-{options['split']}"
    identity = identity_of(model, f"{config['dataset']}/{options['split']}/{len(data)}")
    console = Console(quiet=not state.is_main_process)
    with _bar(console, len(range(state.process_index, len(data), state.num_processes))) as advance:
        place = (options["batch_size"], state.process_index, state.num_processes)
        certify_shard(model, data, settings, out, identity, *place, advance)
    state.wait_for_everyone()
    if state.is_main_process:
        _report(console, settings, out)


def _bar(console: Any, total: int) -> Any:
    """A progress bar as a context that gives the function which advances it."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown() -> Any:
        columns = (TextColumn("certifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("certifying", total=total)
            yield lambda count: bar.advance(task, count)

    return shown()


def _report(console: Any, settings: CertifySettings, out: Path) -> None:
    from lirpa_lip.training.epsilon import parse_epsilon
    from lirpa_lip.training.figures import draw_certified_accuracy

    summary = write_merged(out, settings)
    title = f"{summary['samples']} samples, clean {summary['clean']:.2%}, bound {settings.bound}"
    worth = (summary["certificate"], summary["delta_per_sample"])
    columns = (EPS, PGD, CERTIFIED, *WORTH)
    rows = [(r["eps"], r["pgd"], r["certified"], *worth) for r in summary["table"]]
    show_table(title, columns, rows, console)
    attacked = {float(parse_epsilon(r["eps"])): r["pgd"] for r in summary["table"] if r["pgd"] is not None}
    draw_certified_accuracy({settings.bound: read_rows(out)}, out / "certified.png", {settings.bound: attacked})
    say(f"wrote {out / 'certificates.csv'}, summary.json and certified.png")
