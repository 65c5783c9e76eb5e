"""Three networks trained for a small Lipschitz constant: cross-entropy plus a penalty on the product of the norms.

    loss = CE(f(x), y) + penalty · log(‖W_1‖ … ‖W_L‖)

Norms are power iterations from a vector per layer that is kept from step to step: estimates, which is all that training
needs. A few minutes on one core for all three; weights are kept in a cache folder and trained again only if the
settings change.

    python benchmarks/small_lipschitz.py --cache build
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from lib.networks import SHARED, cnn_a, load_images
from lib.stages import stages_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lirpa_lip.losses.warm_norm import WarmStarts
from lirpa_lip.training.data import load_data
from lirpa_lip.training.sources import ImageSource


@dataclass(frozen=True)
class Recipe:
    """How one network is trained."""

    images: str
    penalty: float
    epochs: int
    learning_rate: float = 1e-3
    batch: int = 256
    seed: int = 0


def mlp() -> nn.Sequential:
    """784-100-100-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


#: Name -> (constructor, recipe).
TRAINED = {
    "small_mnist_mlp": (mlp, Recipe("mnist", penalty=0.2, epochs=3)),
    "small_mnist_conv": (lambda: cnn_a(1, 16, 1568), Recipe("mnist", penalty=0.1, epochs=2)),
    "small_cifar_cnn_a": (lambda: cnn_a(3, 16, 2048), Recipe("cifar", penalty=0.03, epochs=3)),
}


def load_trained(name: str, cache: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The network ``name`` of ``TRAINED`` in eval mode, trained if the cache has it not, and 200 test images."""
    make, recipe = TRAINED[name]
    digest = hashlib.sha256(repr(sorted(asdict(recipe).items())).encode()).hexdigest()[:8]
    path = cache / f"{name}-{digest}.safetensors"
    torch.manual_seed(recipe.seed)
    model = make()
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        train(model, recipe, training_images(recipe.images))
        cache.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model.eval(), *load_images(recipe.images)


def training_images(name: str) -> ImageSource:
    """All training images of MNIST, or of CIFAR-10 from JPEG copies of its images."""
    if name == "mnist":
        return load_data("mnist", SHARED / "data", validation=0).train
    return load_data("cifar10", SHARED / "data" / "cifar10_jpeg.npz", validation=0).train


def train(model: nn.Module, recipe: Recipe, data: ImageSource) -> None:
    """Adam with a linearly falling learning rate."""
    from rich.progress import track

    generator = torch.Generator().manual_seed(recipe.seed)
    first, _ = data.batch(torch.arange(1))
    stages, starts = stages_of(model, first), WarmStarts()
    steps = recipe.epochs * (len(data) // recipe.batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    order = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(recipe.epochs)])
    for step in track(range(steps), description="training"):
        x, y = data.batch(order[step * recipe.batch : (step + 1) * recipe.batch])
        norms = torch.stack([starts.norm(i, s.linear_map(), iterations=2).reshape(()) for i, s in enumerate(stages)])
        loss = F.cross_entropy(model(x), y) + recipe.penalty * norms.log().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), default=Path("build"), show_default=True)
@click.option("--networks", default=",".join(TRAINED), show_default=True)
def main(cache: Path, networks: str) -> None:
    """Train what the cache does not hold."""
    for name in networks.split(","):
        model, x, y = load_trained(name, cache)
        click.echo(f"{name}: {float((model(x).argmax(1) == y).float().mean()):.1%} on 200 test images")


if __name__ == "__main__":
    main()
