"""How many images are certified, refuted and left open at the published radii, and in what time?

One CSV row per network and time limit, on the weights that SDP-CROWN's authors published and on other given ones, with
the balls cut by the box of images. ``published`` and ``pgd_published`` are per cent of Table 1 of Chiu et al. (ICML
2025). ``share_*`` are of all images, right or wrong; an image that the network gets wrong is refuted. Every certified
image is attacked with ``--attack`` steps from two random starts for each rival; ``violations`` counts those that fall,
and margins seen below their bounds, and must be 0.

    python benchmarks/sdp_crown.py --images 20 --time-limit 10
    python benchmarks/sdp_crown.py --networks sdpcrown_mnist_mlp --images 200 --time-limit 60
"""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from statistics import median

import click
import torch
from lib.networks import SHARED, load_given, load_images
from lib.sdp_networks import NETWORKS, published_network
from lib.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.verify.attack import attack
from lirpa_lip.verify.cascade import decide_property
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.network import network_of
from lirpa_lip.verify.properties import margins_of, stays_first
from lirpa_lip.verify.settings import VerifySettings

COLUMNS = (
    "network eps images time_limit published pgd_published share_certified share_refuted share_open share_decided "
    "cpu_seconds_median cpu_seconds_total seconds_median decided_by certificate delta violations verdicts"
).split()
#: Network -> (radius, published certified %, published PGD %).
RADII: dict[str, tuple[str, str, str]] = {
    **{name: (entry.eps, entry.certified, entry.pgd) for name, entry in NETWORKS.items()},
    "mnist_cnn_a_adv": ("0.3", "", ""),
    "cifar_cnn_a_adv": ("24/255", "", ""),
}
_BOX = (Fraction(0), Fraction(1))


def load(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in eval mode, images in [0, 1] and labels.

    Raises:
        FileNotFoundError: its files are not there.
    """
    if not name.startswith("sdpcrown_"):
        return load_given(name)
    weights = SHARED / "models" / f"{name}.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is not there; set LIRPA_LIP_SHARED to the folder that holds models/.")
    return published_network(name, load_file(weights)), *load_images("mnist" if "mnist" in name else "cifar")


def measure(name: str, images: int, settings: VerifySettings, attack_steps: int) -> dict[str, object]:
    """A row of the table."""
    model, x, y = load(name)
    text, published, pgd = RADII[name]
    network = network_of(model, x.shape[1:], name=name)
    verdicts, seconds, violations = [], [], 0
    for index in range(min(images, len(x))):
        region = InputRegion.around(x[index : index + 1], 2, parse_epsilon(text), _BOX)
        claim = stays_first(region, int(y[index]), network.outputs, str(index))
        begun = time.process_time()
        verdict = decide_property(network, claim, settings, index)
        seconds.append(time.process_time() - begun)
        verdicts.append(verdict)
        if verdict.status == "certified" and attack_steps:
            margins = margins_of(claim.cases, network.outputs)
            found = attack(network, claim.cases, margins, steps=attack_steps, restarts=2, seed=10**6 + index)
            violations += found.counterexample is not None or found.least < verdict.lower
        shown = f"{name} {index}: {verdict.status} by {verdict.decided_by or 'nothing'}, {seconds[-1]:.1f} s"
        click.echo(f"{shown}, margin {verdict.lower:.4g} to {verdict.upper:.4g}")
    count = len(verdicts)
    shares = {status: sum(v.status == status for v in verdicts) / count for status in ("certified", "refuted", "open")}
    stages = [v.decided_by for v in verdicts if v.decided_by]
    return {
        **{"network": name, "eps": text, "images": count, "time_limit": settings.time_limit},
        **{"published": published, "pgd_published": pgd},
        **{f"share_{status}": f"{share:.4f}" for status, share in shares.items()},
        "share_decided": f"{1 - shares['open']:.4f}",
        "cpu_seconds_median": f"{median(seconds):.3f}",
        "cpu_seconds_total": f"{sum(seconds):.1f}",
        "seconds_median": f"{median(v.total_seconds for v in verdicts):.3f}",
        "decided_by": " ".join(f"{name}:{stages.count(name)}" for name in dict.fromkeys(stages)),
        "certificate": "probabilistic" if any(v.certificate == "probabilistic" for v in verdicts) else "deterministic",
        "delta": max(v.delta for v in verdicts),
        "violations": violations,
        "verdicts": "".join(v.status[0] for v in verdicts),
    }


@click.command()
@click.option("--networks", default=",".join(RADII), show_default=True)
@click.option("--images", default=200, show_default=True)
@click.option("--time-limit", default=60.0, show_default=True, help="Seconds for each image.")
@click.option("--attack", "attack_steps", default=1000, show_default=True, help="Steps against certified images.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "sdp_crown.csv")
def main(networks: str, images: int, time_limit: float, attack_steps: int, out: Path) -> None:
    """Measures and appends."""
    torch.set_num_threads(1)
    table = Table(out, COLUMNS)
    for name in networks.split(","):
        try:
            table.append(measure(name, images, VerifySettings(time_limit=time_limit), attack_steps))
        except FileNotFoundError as error:
            click.echo(str(error))


if __name__ == "__main__":
    main()
