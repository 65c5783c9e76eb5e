"""Main job in one go: train two small networks on real handwritten digits, certify held-out ones, draw the comparison.

    python examples/demo.py                  about three minutes on two cores; no network needed
    python examples/demo.py --images 20 --epochs 2 --out build/quick     a quick look

Both networks are the same small convolutional MaxMin classifier. One is trained with plain cross-entropy, the other
certifiably, with the composed local bound in the GloRo loss. Certified accuracy is the share of held-out digits that
are classified rightly *and* proven to stay so in the whole ℓ₂ ball; PGD accuracy, what an attack leaves, is a ceiling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from lirpa_lip.comparison import METHODS, make_method
from lirpa_lip.losses import GloRoLoss, make_bound
from lirpa_lip.margin import certified, margin_specification
from lirpa_lip.training.attack import survives_pgd
from lirpa_lip.training.data import load_data
from lirpa_lip.training.models import build_model

SHOWN = ("global-product", "crown", "local-lip", "local-lip-crown", "sdp-crown")
TRAIN_EPS = 0.4
console = Console(width=None if Console().is_terminal else 150)


@dataclass
class Outcome:
    """One method on one network at one radius."""

    network: str
    method: str
    eps: float
    certified: float
    lipschitz: float | None = None
    stable: float | None = None
    seconds: float = 0.0


def train(robust: bool, epochs: int, x: Tensor, y: Tensor) -> nn.Module:
    """Adam on plain cross-entropy, or on the GloRo loss with the composed local bound, its radius ramped up."""
    torch.manual_seed(0)
    model = build_model("cnn-tiny", tuple(x.shape[1:]), classes=10, activation="maxmin")
    bound, loss = (make_bound("local-lip", model, x[:1]), GloRoLoss()) if robust else (None, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    name = "certifiably" if robust else "plainly"
    for epoch in track(range(epochs), description=f"training {name}", console=console):
        for part in torch.randperm(len(x)).split(64):
            if robust:
                eps = TRAIN_EPS * min(1.0, 2 * (epoch + 1) / epochs)
                out = bound(x[part], eps, y[part])
                value = loss(out.logits, out.pair_lipschitz, eps, y[part], out.region)
            else:
                value = nn.functional.cross_entropy(model(x[part]), y[part])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def certify(network: str, model: nn.Module, x: Tensor, y: Tensor, radii: list[float], middle: float) -> list[Outcome]:
    """Every method at every radius; Lipschitz constants and stable neurons at the middle one."""
    rows = margin_specification(y, 10)
    found = []
    for name in track(SHOWN, description=f"certifying the {network} network", console=console):
        method = make_method(name, model, x[:1])
        for eps in radii:
            start = time.perf_counter()
            lower = method.lower(x, rows, eps).lower
            outcome = Outcome(network, name, eps, float(certified(lower).float().mean()))
            outcome.seconds = (time.perf_counter() - start) / len(x)
            if eps == middle and (constant := method.lipschitz(x, rows, eps)) is not None:
                outcome.lipschitz = float(constant.upper.mean())
                if constant.stable is not None:
                    outcome.stable = float((constant.stable / constant.neurons).mean())
            found.append(outcome)
    return found


@torch.enable_grad()
def ceiling(network: str, model: nn.Module, x: Tensor, y: Tensor, radii: list[float]) -> list[Outcome]:
    """PGD accuracy at every radius."""
    return [Outcome(network, "pgd", eps, float(survives_pgd(model, x, y, eps, 50).float().mean())) for eps in radii]


def print_table(outcomes: list[Outcome], radii: list[float], middle: float) -> None:
    table = Table(title="certified accuracy of held-out digits, %")
    for column in ("training", "method", *(f"ε = {e:g}" for e in radii)):
        table.add_column(column, justify="left" if column in ("training", "method") else "right")
    for column in (f"Lipschitz, ε = {middle:g}", "stable", "ms/image"):
        table.add_column(column, justify="right")
    pairs = dict.fromkeys((o.network, o.method) for o in outcomes)
    for network, method in pairs:
        mine = [o for o in outcomes if (o.network, o.method) == (network, method)]
        at = next(o for o in mine if o.eps == middle)
        table.add_row(
            network,
            "PGD (ceiling)" if method == "pgd" else method,
            *(f"{100 * o.certified:.1f}" for o in mine),
            "" if at.lipschitz is None else f"{at.lipschitz:.2f}",
            "" if at.stable is None else f"{100 * at.stable:.0f} %",
            "" if method == "pgd" else f"{1000 * sum(o.seconds for o in mine) / len(mine):.1f}",
            end_section=method == "pgd",
        )
    console.print(table)
    for name in SHOWN:
        console.print(f"  {name}: {METHODS[name][1]}", highlight=False)


def draw(outcomes: list[Outcome], path: Path, count: int) -> None:
    networks = list(dict.fromkeys(o.network for o in outcomes))
    figure, axes = plt.subplots(1, len(networks), figsize=(5.2 * len(networks), 4), sharey=True, squeeze=False)
    for axis, network in zip(axes[0], networks):
        for index, method in enumerate((*SHOWN, "pgd")):
            mine = [o for o in outcomes if (o.network, o.method) == (network, method)]
            style = dict(color="black", linestyle=":", label="PGD (ceiling)") if method == "pgd" else dict(label=method)
            if method in ("local-lip", "local-lip-crown", "sdp-crown"):
                style["linewidth"] = 2.2
            axis.plot([o.eps for o in mine], [100 * o.certified for o in mine], marker="os^vDxP"[index], ms=4, **style)
        axis.set_title(f"{network} training, n = {count}", fontsize=10)
        axis.set_xlabel("radius ε (ℓ₂, pixels in [0, 1])")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("certified accuracy, %")
    axes[0][-1].legend(fontsize=8)
    kinds = "certificates: deterministic, or probabilistic with δ ≤ 1e-6"
    figure.suptitle(f"cnn-tiny (MaxMin) on held-out digits; {kinds}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


@click.command()
@click.option("--images", default=100, show_default=True, help="held-out digits to certify")
@click.option("--epochs", default=40, show_default=True)
@click.option("--out", default=".", show_default=True, type=click.Path(file_okay=False, path_type=Path))
def main(images: int, epochs: int, out: Path) -> None:
    """Train, certify, print one table, save demo.png."""
    data = load_data("digits", validation=0)
    x, y = data.train.batch(torch.arange(len(data.train)))
    test_x, test_y = data.test.batch(torch.arange(min(images, len(data.test))))
    radii = [0.1, 0.25, 0.5, 1.0]
    outcomes = []
    for network in ("plain", "certified"):
        model = train(network == "certified", epochs, x, y)
        accuracy = float((model(test_x).argmax(1) == test_y).float().mean())
        console.print(f"{network} training: {100 * accuracy:.1f} % of the held-out digits are classified rightly")
        outcomes += certify(network, model, test_x, test_y, radii, middle=0.25)
        outcomes += ceiling(network, model, test_x, test_y, radii)
    print_table(outcomes, radii, middle=0.25)
    out.mkdir(parents=True, exist_ok=True)
    draw(outcomes, out / "demo.png", len(test_x))
    console.print(f"figure: {out / 'demo.png'}")


if __name__ == "__main__":
    main()
