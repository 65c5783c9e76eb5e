"""``lirpa-lip export``: a run's network alone, to be handed on."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the weights; bfloat16 halves the file, and is another network: certify that one.",
)
def export(run: Path, out: Path, precision: str) -> None:
    """Write the network of RUN, a run's folder or a checkpoint, without all that training needs, to the folder OUT.

    `certify`, `verify` and the others take OUT like the run itself; training cannot go on from it, but may start from
    it with --start-from.
    """
    from lirpa_lip.training.export import export_weights

    written = export_weights(run, out, precision)
    size = (written / "tensors.safetensors").stat().st_size / 2**20
    click.echo(f"{written} ({size:.1f} MiB). Certify it: lirpa-lip certify {out}")
