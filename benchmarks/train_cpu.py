"""Certified training on two CPU cores: digits, and MNIST with a small convolutional network.

    python benchmarks/train_cpu.py --data-dir FOLDER           # FOLDER/MNIST/raw; minutes per row
    python benchmarks/train_cpu.py --only digits-0.5 --epochs 5      # a part of it, shorter

Plain cross-entropy, and the GloRo loss with the global, the local product and the composed bound, at equal numbers of
epochs; ReLU, clipped ReLU, MaxMin and clipped MaxMin; the sparsity loss on and off. Every network is then attacked
(PGD) and certified by those bounds and by sdp-crown on the same test images. A row that is finished is in the CSV file
and stays; an unfinished run goes on from its checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from lib.table import Table
from torch import nn

from lirpa_lip.losses import make_bound
from lirpa_lip.training.certification import CertifySettings, certify_shard, identity_of, read_rows, summarise
from lirpa_lip.training.checkpoint import checkpoints_in, load_checkpoint
from lirpa_lip.training.config import TrainConfig
from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.training.models import ACTIVATIONS
from lirpa_lip.training.progress import RichProgress
from lirpa_lip.training.run_state import model_from
from lirpa_lip.training.sources import ImageSource, first_of
from lirpa_lip.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "train_cpu.csv"
SETTINGS: dict[str, dict] = {
    "digits-0.5": {"dataset": "digits", "eps": "0.5", "batch_size": 64, "epochs": 60},
    "mnist-0.5": {"dataset": "mnist", "eps": "0.5", "batch_size": 128, "epochs": 4},
    "mnist-1.58": {"dataset": "mnist", "eps": "1.58", "batch_size": 128, "epochs": 4},
}
BOUNDS = ("global-product", "local-product", "local-lip")
CERTIFIED = (*BOUNDS, "sdp-crown")
FIELDS = ("setting", "method", "activation", "sparsity", "epochs", "seed", "clean", "pgd",
          *(f"certified_{bound}" for bound in CERTIFIED), "eliminated", "samples", "certificate", "train_seconds",
          "certify_seconds")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One row: how a network of one setting is trained."""

    setting: str
    method: str
    activation: str
    sparsity: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.setting}/{self.method}-{self.activation}" + ("-sparse" if self.sparsity else "")

    def config(self, seed: int, epochs: int | None, data_dir: str | None, work: Path) -> TrainConfig:
        chosen = dict(SETTINGS[self.setting])
        chosen["epochs"] = epochs or chosen["epochs"]
        plain = self.method == "plain"
        robust = {"loss": "plain" if plain else "gloro", "bound": "global-product" if plain else self.method}
        return TrainConfig(
            **chosen,
            **robust,
            data_dir=data_dir if chosen["dataset"] != "digits" else None,
            arch="cnn-small",
            activation=self.activation,
            sparsity=self.sparsity,
            ramp=chosen["epochs"] / 2,
            lr=2e-3,
            end_lr=1e-5,
            seed=seed,
            out=str(work / f"{self.key}-seed{seed}"),
        )


def all_runs() -> list[Run]:
    """Every row, the most telling first."""
    runs = []
    for setting in SETTINGS:
        runs += [Run(setting, "plain", activation) for activation in ("relu", "clipped_relu")]
        runs += [Run(setting, bound, activation) for activation in ACTIVATIONS for bound in BOUNDS]
        runs += [Run(setting, "local-product", activation, 0.01) for activation in ("clipped_relu", "clipped_maxmin")]
    return runs


def measured(run: Run, config: TrainConfig, samples: int, pgd_steps: int) -> dict:
    """Trains (or goes on), attacks and certifies one network."""
    folder, begun = Path(config.out), time.perf_counter()
    trainer = Trainer(config, RichProgress())
    resumed = bool(checkpoints_in(folder / "checkpoints"))
    if resumed:
        trainer.resume()
    best = trainer.fit()
    trained = time.perf_counter()
    model = model_from(load_checkpoint(best))
    test = first_of(trainer.data.test, samples)
    row = {"setting": run.setting, "method": run.method, "activation": run.activation, "sparsity": run.sparsity}
    kinds = set()
    for bound in CERTIFIED:
        attack = pgd_steps if bound == "global-product" else 0
        settings = CertifySettings(config.eps, bound, radius_steps=0, pgd_steps=attack)
        target = folder / "certificates" / f"{bound}-{samples}"
        certify_shard(model, test, settings, target, identity_of(model, f"{config.dataset} {samples}"))
        model = model.float()
        summary = summarise(read_rows(target), settings)
        (line,) = summary["table"]
        row[f"certified_{bound}"] = f"{100 * line['certified']:.1f}"
        kinds.add(summary["certificate"])
        if bound == "global-product":
            row |= {"clean": f"{100 * summary['clean']:.1f}", "pgd": f"{100 * line['pgd']:.1f}"}
    row["eliminated"] = eliminated(model, config, test)
    row |= {"epochs": config.epochs, "seed": config.seed, "samples": samples, "certificate": "/".join(sorted(kinds))}
    # of a run that goes on from a checkpoint the time before is not known
    row["train_seconds"] = "" if resumed else f"{trained - begun:.0f}"
    row["certify_seconds"] = f"{time.perf_counter() - trained:.0f}"
    return row


@torch.no_grad()
def eliminated(model: nn.Module, config: TrainConfig, test: ImageSource, samples: int = 64) -> str:
    """Per cent of activations that are constant on the balls, mean over samples; none are in a plain MaxMin."""
    x, labels = test.batch(torch.arange(min(samples, len(test))))
    intervals = make_bound("local-product", model, x[:1])(x, float(parse_epsilon(config.eps)), labels).intervals
    constant = [~interval.varies() for interval in intervals]
    total = sum(t.numel() for t in constant)
    return f"{100 * sum(int(t.sum()) for t in constant) / total:.1f}" if total else "0.0"


def finished(table: Table) -> set[tuple[str, ...]]:
    """What identifies the rows that are there."""
    return {tuple(row[name] for name in FIELDS[:6]) for row in table.rows()}


@click.command()
@click.option("--data-dir", help="Folder that holds MNIST/raw; without, MNIST is downloaded.")
@click.option("--only", default="", help="Comma-separated parts of names of rows, such as mnist-1.58/local,digits.")
@click.option("--epochs", type=int, help="Instead of each setting's own.")
@click.option("--samples", default=200, show_default=True, help="Test images to attack and certify.")
@click.option("--pgd-steps", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/train_cpu"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--list", "show", is_flag=True, help="Names of the rows, and nothing else.")
def main(data_dir: str | None, only: str, epochs: int | None, samples: int, pgd_steps: int, seed: int, work: Path,
         out: Path, show: bool) -> None:  # fmt: skip
    table = Table(out, FIELDS)
    wanted = [run for run in all_runs() if not only or any(part in run.key for part in only.split(","))]
    for run in wanted:
        config = run.config(seed, epochs, data_dir, work)
        identity = (run.setting, run.method, run.activation, str(run.sparsity), str(config.epochs), str(seed))
        if show or identity in finished(table):
            click.echo(f"{run.key}: {'to do' if identity not in finished(table) else 'done'}")
            continue
        click.echo(f"== {run.key}")
        torch.manual_seed(seed)
        row = measured(run, config, samples, pgd_steps)
        table.append(row)
        click.echo(", ".join(f"{name} {row[name]}" for name in FIELDS[6:15]))


if __name__ == "__main__":
    main()
