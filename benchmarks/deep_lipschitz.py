"""How close are ℓ₂ constants of deep random networks to the largest one found, beside ECLipsE-Gen-Local?

The networks are those of its authors (Xu and Sivaranjani, TMLR 2026): 5 inputs, 2 outputs, layers of a width and a
number, weights of spectral norm between 0.8 and 2.5 and biases from ``RandomState(77·width + 9·layers)``, balls around
the point they use; ReLU in their small set, ELU in their large one. One CSV row per network and radius: the constant of
the whole network from below (``lower``), by ``local-lip``, by the Clarke Jacobian (``clarke_jacobian``), after at most
``seconds_branched`` of branch and bound (``branched``; ``gap`` is it over ``lower``), and by their package where it is
installed (``pip install eclipse-nn``): ``Fast`` (semidefinite) and ``CF`` (closed form), empty where it fails or takes
longer than ``--limit``. Times are wall-clock seconds of one call each, one thread.

    python benchmarks/deep_lipschitz.py
    python benchmarks/deep_lipschitz.py --sets small --radii 0.1 --branch 5 --fresh

What the file has already is not measured again without ``--fresh``.
"""

from __future__ import annotations

import contextlib
import io
import math
import signal
import time
from pathlib import Path

import click
import numpy as np
import torch
from lib.table import Table
from networks.deep import random_network
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "activation width layers eps lower local_lip clarke_jacobian branched gap eclipse_fast eclipse_cf "
    "seconds_local_lip seconds_clarke seconds_branched domains stopped seconds_eclipse_fast seconds_eclipse_cf"
).split()
KEY = ("activation", "width", "layers", "eps")
ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU}
#: Name -> (activation, widths, numbers of layers).
SETS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "small": ("relu", (10, 20, 40, 60), (5, 10, 15, 20, 25)),
    "large": ("elu", (60, 120), (30, 70)),
}
CENTRE = (0.4, 1.8, -0.5, -1.3, 0.9)


def network(activation: str, width: int, layers: int) -> nn.Sequential:
    """The authors' network of a width and a number of layers, in float64."""
    return random_network(width, layers, 77 * width + 9 * layers, ACTIVATIONS[activation])


def theirs(net: nn.Sequential, activation: str, eps: float, algorithm: str, limit: int) -> dict[str, str]:
    """Constant and seconds of their package; nothing where it is missing, fails, or takes too long."""
    try:
        from eclipse_nn import LipConstEstimator
    except ImportError:
        return {}

    def stop(*_: object) -> None:
        raise TimeoutError

    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().numpy() for layer in layers]
    biases = [layer.bias.detach().numpy().reshape(-1, 1) for layer in layers]
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    begun = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            estimator = LipConstEstimator(weights=weights, biases=biases)
            value, _, code = estimator.estimate_gen_local(np.array(CENTRE), eps, activation, algorithm)
    except Exception as error:  # their solvers fail in many ways
        click.echo(f"ECLipsE {algorithm} gives nothing: {type(error).__name__}: {str(error)[:80]}")
        return {}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if code != 0 or not math.isfinite(value):
        return {}
    name = algorithm.lower()
    return {f"eclipse_{name}": f"{value:.5g}", f"seconds_eclipse_{name}": f"{time.perf_counter() - begun:.2f}"}


def measure(activation: str, width: int, layers: int, eps: float, branch: float, limit: int) -> dict[str, object]:
    """A row of the table."""
    net = network(activation, width, layers)
    x: Tensor = torch.tensor([CENTRE], dtype=torch.float64)
    region = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    bounded = BoundedModule(net, torch.empty_like(x))
    row: dict[str, object] = {"activation": activation, "width": width, "layers": layers, "eps": eps}
    lowers = []
    for name, method, options in (
        ("local_lip", "local-lip", {}),
        ("clarke_jacobian", "clarke-jacobian", {"norm": 2}),
        ("branched", "clarke-jacobian", {"norm": 2, "time_limit": branch}),
    ):
        begun = time.perf_counter()
        found = bounded.local_lipschitz(region, method=method, **options)
        row[name] = f"{found.upper.item():.5g}"
        row[f"seconds_{'clarke' if name == 'clarke_jacobian' else name}"] = f"{time.perf_counter() - begun:.2f}"
        lowers.append(found.lower.item())
    row.update(lower=f"{max(lowers):.5g}", gap=f"{found.upper.item() / max(lowers):.4f}")
    row.update(domains=found.details["visited"], stopped=found.details["stopped"])
    for algorithm in ("Fast", "CF"):
        row.update(theirs(net, activation, eps, algorithm, limit))
    return row


@click.command()
@click.option("--sets", default=",".join(SETS), show_default=True)
@click.option("--radii", default="0.1,1", show_default=True)
@click.option("--branch", default=30.0, show_default=True, help="Seconds of branch and bound.")
@click.option("--limit", default=120, show_default=True, help="Seconds for each call of their package.")
@click.option("--out", default=RESULTS / "deep_lipschitz.csv", type=click.Path(path_type=Path))
@click.option("--fresh", is_flag=True, help="Measure again what the file has.")
def main(sets: str, radii: str, branch: float, limit: int, out: Path, fresh: bool) -> None:
    """Measure and append."""
    torch.set_num_threads(1)
    table = Table(out, COLUMNS)
    done = set() if fresh else {tuple(row[name] for name in KEY) for row in table.rows()}
    for name in sets.split(","):
        activation, widths, depths = SETS[name]
        for eps in map(float, radii.split(",")):
            for layers in depths:
                for width in widths:
                    if (activation, str(width), str(layers), str(eps)) in done:
                        continue
                    row = measure(activation, width, layers, eps, branch, limit)
                    click.echo(row)
                    table.append(row)


if __name__ == "__main__":
    main()
