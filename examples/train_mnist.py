"""Train a certifiably robust network on MNIST, certify it, and read the certificates.

    python examples/train_mnist.py --data-dir FOLDER          # FOLDER/MNIST/raw holds the files; without: download
    python examples/train_mnist.py --dataset digits --epochs 3 --limit 300      # a quick look, nothing to download

The same as `lirpa-lip train` followed by `lirpa-lip certify`, from Python.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import click

from lirpa_lip.training.certification import CertifySettings, certify_shard, identity_of, read_rows, write_merged
from lirpa_lip.training.checkpoint import load_checkpoint
from lirpa_lip.training.config import TrainConfig
from lirpa_lip.training.progress import RichProgress
from lirpa_lip.training.run_state import model_from
from lirpa_lip.training.sources import first_of
from lirpa_lip.training.trainer import Trainer


@click.command()
@click.option("--dataset", default="mnist", show_default=True)
@click.option("--data-dir", default=None)
@click.option("--eps", default="0.5", show_default=True)
@click.option("--epochs", default=5, show_default=True)
@click.option("--limit", type=int, default=None, help="Training images at most.")
@click.option("--certify", "count", default=200, show_default=True, help="Test images to certify.")
@click.option("--out", default="runs/train_mnist", show_default=True)
def main(dataset: str, data_dir: str | None, eps: str, epochs: int, limit: int | None, count: int, out: str) -> None:
    config = TrainConfig(
        dataset=dataset,
        data_dir=data_dir,
        limit=limit,
        arch="cnn-small",
        activation="maxmin",
        loss="gloro",
        bound="local-product",
        eps=eps,
        epochs=epochs,
        ramp=epochs / 2,
        batch_size=64,
        lr=2e-3,
        out=out,
    )
    trainer = Trainer(config, RichProgress())
    best = trainer.fit()

    # Training rests on estimates. A certificate is computed anew, from the saved weights.
    model = model_from(load_checkpoint(best))
    settings = CertifySettings(eps=f"{eps}", bound="local-lip", pgd_steps=20)
    test = first_of(trainer.data.test, count)
    folder = Path(out) / "certificates" / "example"
    certify_shard(model, test, settings, folder, identity_of(model, f"{dataset}, {count} images"))
    summary = write_merged(folder, settings)
    for line in summary["table"]:
        click.echo(
            f"ε = {line['eps']}: clean {summary['clean']:.1%}, PGD {line['pgd']:.1%}, "
            f"certified {line['certified']:.1%} ({summary['certificate']})"
        )
    best_row = max(
        (row for row in read_rows(folder) if row.certified(Fraction(0))), key=lambda row: row.radius, default=None
    )
    if best_row is not None:
        click.echo(
            f"most robust: image {best_row.index}, a {best_row.label}, safe up to ℓ₂ distance {best_row.radius:.3f}"
        )


if __name__ == "__main__":
    main()
