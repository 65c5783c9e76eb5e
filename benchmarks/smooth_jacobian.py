"""How close are Jacobian bounds of networks with smooth activations to the constant, beside auto_LiRPA's own?

One CSV row per network and radius of an ℓ∞ box: the ℓ∞ constant of the whole network from below (``lower``), by the
Clarke Jacobian with slopes that move with the input (``clarke_jacobian``), with slopes from their ranges alone
(``ranges``, RecurJac's rule is the same there), after ``seconds_branched`` of branch and bound (``branched``), and by
auto_LiRPA's ``JacobianOP`` without its optimisation (``auto_lirpa``, from 0.4 on; empty where it is missing or fails).
Times are processor seconds, wrapping included, of one call each in turn; medians.

    python benchmarks/smooth_jacobian.py
    python benchmarks/smooth_jacobian.py --activations tanh --repeats 1 --branch 0
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from lib.table import Table
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "activation scale widths eps lower clarke_jacobian ranges branched auto_lirpa "
    "over_auto_lirpa seconds seconds_auto_lirpa seconds_branched"
).split()
ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU}
WIDTHS = ((8, 20, 20, 3), (20, 60, 60, 60, 5))
RADII = {"1/255": 1 / 255, "4/255": 4 / 255, "16/255": 16 / 255, "0.2": 0.2, "0.5": 0.5}


def network(activation: str, scale: float, widths: tuple[int, ...]) -> nn.Sequential:
    """Torch's default weights of seed 0, times ``scale``."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        linear = nn.Linear(before, after)
        with torch.no_grad():
            linear.weight.mul_(scale)
        layers += [linear, *([ACTIVATIONS[activation]()] if k < len(widths) - 2 else [])]
    return nn.Sequential(*layers)


def theirs(net: nn.Module, x: Tensor, eps: float) -> float:
    """The largest row of auto_LiRPA's bounds of the Jacobian."""
    import auto_LiRPA
    from auto_LiRPA.jacobian import JacobianOP

    class WithJacobian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return JacobianOP.apply(self.net(x.requires_grad_()), x)

    bounded = auto_LiRPA.BoundedModule(WithJacobian(), x)
    region = auto_LiRPA.PerturbationLpNorm(norm=math.inf, eps=eps)
    ends = bounded.compute_jacobian_bounds(auto_LiRPA.BoundedTensor(x, region), optimize=False)
    rows = torch.maximum(*(end.detach().abs().reshape(len(net(x)[0]), -1) for end in ends)).sum(1)
    return float(rows.max())


def timed(call: Callable[[], object]) -> tuple[object, float]:
    start = time.process_time()
    found = call()
    return found, time.process_time() - start


def measure(activation: str, scale: float, widths: tuple[int, ...], eps: str, repeats: int, branch: float) -> dict:
    """A row of the table."""
    net, radius = network(activation, scale, widths), RADII[eps]
    x = torch.rand(1, widths[0], generator=torch.Generator().manual_seed(1))
    region = PerturbationLpNorm(norm=math.inf, eps=radius)

    def ours(limit: float = 0.0):
        bounded = BoundedModule(net, torch.empty_like(x))
        options = {"time_limit": limit} if limit else {}
        return bounded.local_lipschitz((BoundedTensor(x, region),), method="clarke-jacobian", norm=math.inf, **options)

    try:
        other: float | None = theirs(net, x, radius)
    except Exception as error:  # a version without it, or an operator it cannot take
        click.echo(f"auto_LiRPA's own bounds are left out: {type(error).__name__}: {str(error)[:80]}")
        other = None
    found, seconds, other_seconds = ours(), [], []
    for _ in range(repeats):
        found, spent = timed(ours)
        seconds.append(spent)
        if other is not None:
            other_seconds.append(timed(lambda: theirs(net, x, radius))[1])
    searched = ours(branch) if branch else found
    upper, ranges = (float(found.details["bounds"][name]) for name in ("clarke-jacobian", "recurjac"))
    return {
        "activation": activation,
        "scale": scale,
        "widths": "-".join(map(str, widths)),
        "eps": eps,
        "lower": f"{float(searched.lower):.5g}",
        "clarke_jacobian": f"{upper:.5g}",
        "ranges": f"{ranges:.5g}",
        "branched": f"{float(searched.upper):.5g}" if branch else "",
        "auto_lirpa": "" if other is None else f"{other:.5g}",
        "over_auto_lirpa": "" if other is None else f"{upper / other:.4f}",
        "seconds": f"{median(seconds):.3f}",
        "seconds_auto_lirpa": f"{median(other_seconds):.3f}" if other_seconds else "",
        "seconds_branched": branch,
    }


@click.command()
@click.option("--activations", default=",".join(ACTIVATIONS), help="Comma-separated.")
@click.option("--repeats", default=3, type=click.IntRange(min=1))
@click.option("--branch", default=5.0, type=click.FloatRange(min=0), help="Seconds of branch and bound; 0 for none.")
@click.option("--out", default=RESULTS / "smooth_jacobian.csv", type=click.Path(path_type=Path))
def main(activations: str, repeats: int, branch: float, out: Path) -> None:
    torch.set_num_threads(1)
    table = Table(out, COLUMNS)
    for activation in activations.split(","):
        for widths in WIDTHS:
            for scale in (1.0, 3.0):
                for eps in RADII:
                    row = measure(activation, scale, widths, eps, repeats, branch)
                    click.echo(row)
                    table.append(row)


if __name__ == "__main__":
    main()
