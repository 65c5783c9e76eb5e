"""What share of a certification's processor time goes to the search of radii, and what radii it finds.

    python benchmarks/radius_search.py                                  # digits, and what is there of MNIST
    python benchmarks/radius_search.py --network digits --bound local-lip

Each bound certifies the same images at one radius, without a search (``certify --radius none``) and with so many
verdicts for it; all take turns, so that a busy machine slows them alike. Seconds are processor seconds, the least of
the repeats. Rows are appended to a CSV file.
"""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import click
import torch
from lib.networks import GIVEN, SHARED, load_given, load_images
from lib.sdp_networks import published_network
from lib.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from lirpa_lip.norms.draw import seeds_of
from lirpa_lip.training.certifiers import Certifier, make_certifier
from lirpa_lip.training.models import build_model
from lirpa_lip.training.objective import Objective

RESULTS = Path(__file__).parent / "results" / "radius_search.csv"
BOUNDS = ("global-product", "local-product", "local-lip", "sdp-crown")
#: Name -> the radius it is certified at.
NETWORKS = {"digits": "1/4", "sdpcrown_mnist_mlp": "1", "mnist_cnn_a_adv": "3/10"}
FIELDS = (
    "network",
    "eps",
    "bound",
    "samples",
    "radius_steps",
    "seconds",
    "share_of_search",
    "certified",
    "mean_radius",
)
#: Verdicts spent on a sample's radius beside the one at ``eps``; two is the command's default.
STEPS = (0, 1, 2, 4)


def digits() -> tuple[nn.Module, Tensor]:
    """A small network trained with the global bound in a quarter of a minute, and test images."""
    from lirpa_lip.training.data import load_data

    data = load_data("digits")
    torch.manual_seed(0)
    model = build_model("mlp-small", data.shape, data.classes)
    objective = Objective(model, torch.zeros(1, *data.shape), "gloro", "global-product")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = data.train.batch(torch.arange(len(data.train)))
    for epoch in range(15):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            objective(x[part], y[part], 0.25 * min(1, epoch / 6), 0.0)[0].backward()
            optimizer.step()
    return model.eval(), data.test.batch(torch.arange(100))[0]


def network_of(name: str) -> tuple[nn.Module, Tensor]:
    """
    Raises:
        FileNotFoundError: its weights are not at hand.
    """
    if name == "digits":
        return digits()
    if name in GIVEN:
        return load_given(name)[:2]
    weights = SHARED / "models" / f"{name}.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is not there; set LIRPA_LIP_SHARED to the folder that holds models/.")
    return published_network(name, load_file(weights)).eval(), load_images("mnist")[0]


def seconds_of(certifier: Certifier, x: Tensor, labels: Tensor, eps: Fraction, batch: int) -> tuple:
    begun = time.process_time()
    found = [certifier(a, b, [eps]) for a, b in zip(x.split(batch), labels.split(batch), strict=True)]
    return time.process_time() - begun, torch.cat([verdict.radius for verdict in found])


def measure(model: nn.Module, x: Tensor, bound: str, eps: Fraction, repeats: int, batch: int) -> dict[int, tuple]:
    """Verdicts of the search -> (seconds, radii), all with the same random starts."""
    labels, best = model(x).argmax(1), {}
    for _ in range(repeats):
        for steps in STEPS:
            with seeds_of(0):
                certifier = make_certifier(bound, model, x[:1], radius_steps=steps)
                certifier.prepare(1)
                found = seconds_of(certifier, x, labels, eps, batch)
            best[steps] = min(best.get(steps, found), found, key=lambda pair: pair[0])
    return best


@click.command()
@click.option("--network", type=click.Choice(list(NETWORKS)), multiple=True, default=tuple(NETWORKS))
@click.option("--bound", type=click.Choice(BOUNDS), multiple=True, default=BOUNDS)
@click.option("--images", default=40, show_default=True)
@click.option("--batch-size", default=10, show_default=True)
@click.option("--repeats", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@torch.no_grad()
def main(network: tuple[str, ...], bound: tuple[str, ...], images: int, **options) -> None:
    table = Table(options["out"], FIELDS)
    for name in network:
        try:
            with torch.enable_grad():
                model, x = network_of(name)
        except FileNotFoundError as error:
            click.echo(f"{name} is left out: {error}")
            continue
        model, x, eps = model.double(), x[:images].double(), Fraction(NETWORKS[name])
        for kind in bound:
            found = measure(model, x, kind, eps, options["repeats"], options["batch_size"])
            least = found[0][0]
            for steps, (seconds, radii) in found.items():
                certified = float((radii >= float(eps)).double().mean())
                shown = (f"{seconds:.3f}", f"{max(0.0, 1 - least / seconds):.2f}", f"{certified:.4f}")
                mean = f"{float(radii.clamp(min=0).mean()):.5f}"
                table.append(dict(zip(FIELDS, (name, NETWORKS[name], kind, len(x), steps, *shown, mean), strict=True)))
                click.echo(f"{name:20} {kind:15} {steps:2} {' '.join(shown)} {mean}")


if __name__ == "__main__":
    main()
