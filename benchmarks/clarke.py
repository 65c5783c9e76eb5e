"""Local Lipschitz constants by every method on the published families: value, gap to the lower bound, time.

    python benchmarks/clarke.py                 # all families, about a quarter of an hour on two cores
    python benchmarks/clarke.py --quick         # two small networks, for continuous integration
    python benchmarks/clarke.py --given         # also cifar_cnn_a_adv and cifar_resnet2b, trained by others
    python benchmarks/clarke.py --heuristics    # branch and bound by every splitting heuristic

Rows are appended to a CSV file. ``exact`` is the enumeration of linear regions, on networks small enough.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from lib.clarke_families import Member, load, members, train
from lib.networks import load_given
from lib.table import Table
from references.clarke_exact import chain_of, enumerate_constant
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import DataError, LirpaLipError
from lirpa_lip.jacobian.options import HEURISTICS
from lirpa_lip.local.bounds import network_graph

RESULTS = Path(__file__).parent / "results" / "clarke.csv"
FIELDS = (
    "family",
    "network",
    "neurons",
    "eps",
    "norm",
    "sample",
    "method",
    "upper",
    "lower",
    "gap",
    "seconds",
    "visited",
    "stopped",
    "peak_gib",
)


def measure(net: nn.Module, x: Tensor, eps: float, norm: float, method: str, **options) -> dict:
    """One constant over one region: an ℓ∞ box for p = ∞, an ℓ₂ ball for p = 2."""
    bounded = BoundedModule(net, torch.empty_like(x))
    if norm == 2:
        region = PerturbationLpNorm(norm=2, eps=eps)
    else:
        wide = x.double()
        region = PerturbationLpNorm(x_L=(wide - eps).clamp(min=0), x_U=(wide + eps).clamp(max=1))
    started = time.perf_counter()
    result = bounded.local_lipschitz((BoundedTensor(x, region),), method=method, norm=norm, **options)
    seconds = time.perf_counter() - started
    upper, lower = (float(t.detach()) for t in (result.upper, result.lower))
    return {
        "upper": upper,
        "lower": lower,
        "gap": upper / lower if lower > 0 else math.inf,
        "seconds": round(seconds, 3),
        "visited": result.details.get("visited", ""),
        "stopped": result.details.get("stopped", ""),
        "neurons": result.neurons,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def rows_of(net: nn.Module, x: Tensor, eps: float, time_limit: float, heuristics: bool) -> Iterator[dict]:
    """Every method on one region, in ℓ∞ and, with the composed bound, in ℓ₂."""
    for method in ("naive", "fastlip", "recurjac", "clarke-jacobian"):
        yield {"norm": "inf", "method": method, **measure(net, x, eps, math.inf, method)}
    for heuristic in HEURISTICS if heuristics else ("gap",):
        options = {"time_limit": time_limit, "heuristic": heuristic}
        name = "clarke-jacobian + BaB" + (f" ({heuristic})" if heuristics else "")
        yield {"norm": "inf", "method": name, **measure(net, x, eps, math.inf, "clarke-jacobian", **options)}
    for method in ("local-lip", "clarke-jacobian"):
        yield {"norm": "2", "method": method, **measure(net, x, eps, 2, method)}
    exact = exact_row(net, x, eps)
    if exact is not None:
        yield exact


def exact_row(net: nn.Module, x: Tensor, eps: float) -> dict | None:
    """The exact ℓ∞ constant where there are at most twenty hidden neurons."""
    started = time.perf_counter()
    try:
        chain = chain_of(network_graph(BoundedModule(net, torch.empty_like(x))))
    except LirpaLipError:
        return None
    hidden = sum(len(b) for b in chain.biases[:-1])
    if hidden > 20:
        return None
    ends = ((x.double() + s * eps).clamp(0, 1).flatten().numpy() for s in (-1, 1))
    value, regions = enumerate_constant(chain, *ends)
    seconds = round(time.perf_counter() - started, 3)
    return {
        "norm": "inf",
        "method": "exact",
        "upper": value,
        "lower": value,
        "gap": 1.0,
        "seconds": seconds,
        "visited": regions,
        "neurons": hidden,
    }


def cases(quick: bool, given: bool, only: str | None) -> Iterator[tuple[str, str, nn.Module, Tensor, float]]:
    """``(family, name, network, test inputs, eps)``."""
    chosen: list[Member] = [m for m in members() if only is None or only in (m.family, m.name)]
    if quick:
        chosen = [m for m in chosen if m.name in ("mlp-3x8", "cnn-2")]
    for member in chosen:
        try:
            split = load(member.data)
        except DataError as error:
            click.echo(f"{member.name}: left out, {error}")
            continue
        yield member.family, member.name, train(member, split), split[2], member.eps
    for name in ("mnist_cnn_a_adv", "cifar_cnn_a_adv", "cifar_resnet2b") if given else ():
        try:
            net, x, _ = load_given(name)
        except FileNotFoundError as error:
            click.echo(f"{name}: left out, {error}")
            continue
        yield "given", name, net, x, 1 / 255


@click.command()
@click.option("--quick", is_flag=True, help="Two small networks, one sample, a second of branch and bound.")
@click.option("--given", is_flag=True, help="Also the networks that others trained.")
@click.option("--heuristics", is_flag=True, help="Branch and bound once for each splitting heuristic.")
@click.option("--only", help="One family or network.")
@click.option("--samples", type=int, default=2, show_default=True)
@click.option(
    "--time-limit", type=float, default=10.0, show_default=True, help="Seconds of branch and bound per region."
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    quick: bool, given: bool, heuristics: bool, only: str | None, samples: int, time_limit: float, out: Path
) -> None:
    """Appends to OUT and prints the medians over samples."""
    if quick:
        samples, time_limit = 1, 1.0
    table = Table(out, FIELDS)
    for family, name, net, x, eps in cases(quick, given, only):
        found: dict[tuple[str, str], list[dict]] = {}
        for index in range(samples):
            for row in rows_of(net, x[index : index + 1], eps, time_limit, heuristics):
                table.append({"family": family, "network": name, "eps": eps, "sample": index, **row})
                found.setdefault((row["norm"], row["method"]), []).append(row)
        summarise(name, found)


def summarise(name: str, found: dict[tuple[str, str], list[dict]]) -> None:
    click.echo(f"{name}\n  {'norm':<5}{'method':<28}{'upper':>12}{'upper/lower':>13}{'seconds':>10}")
    for (norm, method), rows in found.items():
        upper, gap, seconds = (_median([float(r[k]) for r in rows]) for k in ("upper", "gap", "seconds"))
        click.echo(f"  {norm:<5}{method:<28}{upper:>12.4g}{gap:>13.4f}{seconds:>10.2f}")


def _median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


if __name__ == "__main__":
    main()
