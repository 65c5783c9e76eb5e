"""Train on your own images with your own network: a folder of images per class, a function that makes the network.

    python examples/train_own_data.py --folder FOLDER --image-size 32      # FOLDER/{train,test}/<class>/*.png

Without --folder, a data set of bright and dark squares is drawn first, so that there is something to see.
The command line does the same: lirpa-lip train --dataset imagefolder --data-dir FOLDER --image-size 32
--arch my_package.my_module:make_network. That module is looked for on PYTHONPATH and in the current folder.
"""

from __future__ import annotations

import random
import shlex
import sys
from pathlib import Path

import click
from PIL import Image
from torch import nn

from lirpa_lip.nn import ClippedReLU
from lirpa_lip.training.config import TrainConfig
from lirpa_lip.training.progress import RichProgress
from lirpa_lip.training.trainer import Trainer


def make_network(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Any module that takes images in [0, 1]; a sequential one of these layers trains fastest."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 4, stride=2, padding=1),
        ClippedReLU((8, height // 2, width // 2), threshold=1.0),
        nn.Flatten(),
        nn.Linear(8 * (height // 2) * (width // 2), 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


def draw_squares(folder: Path, per_class: int = 60, size: int = 8) -> None:
    """Two classes of noisy grey squares: dark and bright."""
    chance = random.Random(0)
    for split, count in (("train", per_class), ("test", per_class // 3)):
        for name, level in (("bright", 180), ("dark", 70)):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = bytes(min(255, max(0, int(chance.gauss(level, 30)))) for _ in range(size * size))
                Image.frombytes("L", (size, size), pixels).save(target / f"{index}.png")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=None)
@click.option("--image-size", default=8, show_default=True)
@click.option("--eps", default="0.3", show_default=True)
@click.option("--epochs", default=4, show_default=True)
@click.option("--out", default="runs/own_data", show_default=True)
def main(folder: Path | None, image_size: int, eps: str, epochs: int, out: str) -> None:
    if folder is None:
        folder = Path(out) / "squares"
        draw_squares(folder, size=image_size)
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here))  # where "train_own_data:make_network" is found
    config = TrainConfig(
        dataset="imagefolder",
        data_dir=str(folder),
        image_size=image_size,
        arch="train_own_data:make_network",
        loss="bcp",
        bound="local-product",
        eps=eps,
        epochs=epochs,
        ramp=epochs / 2,
        kappa=0.2,
        sparsity=0.01,
        batch_size=16,
        lr=5e-3,
        out=out,
    )
    best = Trainer(config, RichProgress()).fit()
    # A checkpoint's own code runs only where it is named on the command line, and the module must be found there.
    found = f"PYTHONPATH={shlex.quote(str(here))}"
    click.echo(f"trained; certify with: {found} lirpa-lip certify {shlex.quote(str(best))} --arch {config.arch}")


if __name__ == "__main__":
    main()
