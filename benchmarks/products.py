"""What bounds hold of networks that multiply their values: attention, normalisation, gates, recurrence, x₀·x₁.

Each classifier is trained on scikit-learn's digits (``lib/product_networks.py``), in seconds. Per radius: half the
width of the logits' bounds over the radius times the norm of their gradients; the local Lipschitz constant over its
lower bound (rows "… constant"); certified images of each method beside what PGD leaves, and how many of the sampled
and attacked values contradict a bound. ``local-lip-tight`` is ``local-lip`` with ``tighten=-1``. ``cpu_seconds`` is one
call's, per image, one thread.

    python benchmarks/products.py                                    # everything
    python benchmarks/products.py --networks mixer --images 4        # one network
    python benchmarks/products.py --quick                            # does it run?
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import click
import torch
from lib.attack import sampled_points, strongest
from lib.product_networks import CLASSIFIERS, ControlLaw, Lighting, digits, regressor, trained
from lib.table import Table
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import LirpaLipError
from lirpa_lip.margin import certified, margin_specification

COLUMNS = """network accuracy region eps method images ratio certified robust violations cpu_seconds note""".split()
BOUNDS = ("ibp", "crown", "local-lip", "local-lip-tight", "local-lip-crown")
CONSTANTS = ("local-lip", "local-lip-crown")
#: Where a call of the local methods takes minutes, and what they give is not worth them; and most images of these.
LARGE = {"vit": ("ibp", "crown"), "lstm-rows": ("ibp", "crown", "local-lip-tight", "local-lip-crown")}
_FEW = 4
_POINTS, _PGD_STEPS = 100, 40


def ball(x: Tensor, eps: float) -> tuple[BoundedTensor]:
    return (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)


def measured(call: Callable[[], dict]) -> dict:
    """A row's results with their cost, or the reason why there are none."""
    begun = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call()
    except LirpaLipError as error:
        found = {"note": f"{type(error).__name__}: {str(error).split(';')[0][:160]}"}
    return {**found, "cpu_seconds": f"{time.process_time() - begun:.2f}"}


def constant(bounded: BoundedModule, model: nn.Module, x: Tensor, *, eps: float, method: str) -> dict:
    """The median of upper over lower bound of the Lipschitz constant, against differences of sampled points."""
    found = bounded.local_lipschitz(ball(x, eps), method=method)
    points = sampled_points(x, eps, _POINTS)
    with torch.no_grad():
        values = torch.stack([model(p) for p in points])
    moved = (values[1:] - values[:-1]).flatten(2).norm(dim=2)
    distance = (points[1:] - points[:-1]).flatten(2).norm(dim=2)
    wrong = int((moved > found.upper * distance * (1 + 1e-4) + 1e-5).sum())
    return {"ratio": f"{median((found.upper / found.lower).tolist()):.3f}", "violations": wrong}


def verdicts(
    bounded: BoundedModule, model: nn.Module, x: Tensor, y: Tensor, *, attacked: Tensor, eps: float, method: str
) -> dict:
    """Certified images, and the logits' widths over those of the tangents."""
    lower, upper = (t.detach() for t in bounded.compute_bounds(x=ball(x, eps), method=method))
    c = margin_specification(y, lower.shape[1], x.dtype)
    margins, _ = bounded.compute_bounds(x=ball(x, eps), C=c, method=method, bound_upper=False)
    gradients = torch.stack(
        [torch.autograd.functional.jacobian(model, x[i : i + 1])[0, :, 0].flatten(1).norm(dim=1) for i in range(len(x))]
    )
    wide = (upper - lower) / (2 * eps * gradients)
    with torch.no_grad():
        values = torch.stack([model(p) for p in (*sampled_points(x, eps, _POINTS), attacked)])
    slack = 1e-4 * (1 + values.abs())
    wrong = int(((values < lower - slack) | (values > upper + slack)).sum())
    return {
        "ratio": f"{median(wide.mean(1).tolist()):.3f}",
        "certified": int(certified(margins).sum()),
        "violations": wrong,
    }


def run(name: str, model: nn.Module, table: Table, radii: Sequence[float], images: int) -> None:
    """All rows of a classifier, on the first images it classifies correctly."""
    images = min(images, _FEW) if name in LARGE else images
    _, _, x, y = digits()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    accuracy, x, y = f"{right.float().mean():.4f}", x[right][:images], y[right][:images]
    bounded, tight = (BoundedModule(model, x[:1], bound_opts={"local_lip": {"tighten": t}}) for t in (0, -1))
    for eps in radii:
        attacked = strongest(model, x, y, eps, _PGD_STEPS)
        with torch.no_grad():
            robust = int((model(attacked).argmax(1) == y).sum())
        shared = {"network": name, "accuracy": accuracy, "region": "ball", "eps": eps, "images": len(x)}
        methods = LARGE.get(name, BOUNDS)
        for method in methods:
            asked, name_of = (tight, "local-lip") if method == "local-lip-tight" else (bounded, method)
            row = measured(partial(verdicts, asked, model, x, y, attacked=attacked, eps=eps, method=name_of))
            table.append({**shared, "method": method, "robust": robust, **_per_image(row, len(x))})
        for method in CONSTANTS if name not in LARGE else ():
            row = measured(partial(constant, bounded, model, x, eps=eps, method=method))
            table.append({**shared, "method": f"{method} constant", **_per_image(row, len(x))})
        print(*shared.values(), "done", flush=True)


def _per_image(row: dict, images: int) -> dict:
    return {**row, "cpu_seconds": f"{float(row['cpu_seconds']) / images:.2f}"}


def ranges(name: str, model: nn.Module, x: Tensor, table: Table, sizes: Sequence[float]) -> None:
    """Widths of the outputs' ranges over a box and an ellipse (a ball of the same radii), beside those of samples."""
    bounded = BoundedModule(model, x)
    for size in sizes:
        for region, norm in (("box", torch.inf), ("ellipse", 2.0)):
            steps = torch.randn(2000, x.shape[1], generator=torch.Generator().manual_seed(0))
            steps = (
                steps.sign() * torch.rand_like(steps) ** 0.1
                if region == "box"
                else steps / steps.norm(dim=1, keepdim=True)
            )
            with torch.no_grad():
                values = model(x + size * steps)
            for method in ("ibp", "crown", "local-lip", "local-lip-crown"):
                row = measured(partial(_range, bounded, x, values, size=size, norm=norm, method=method))
                table.append({"network": name, "region": region, "eps": size, "method": method, "images": 1, **row})
        print(name, size, "done", flush=True)


def _range(bounded: BoundedModule, x: Tensor, values: Tensor, *, size: float, norm: float, method: str) -> dict:
    if norm == torch.inf and method.startswith("local"):
        # a box is the ball around it, cut by it
        region = PerturbationLpNorm(norm=2, eps=size * x.shape[1] ** 0.5, x_L=x - size, x_U=x + size)
    else:
        region = PerturbationLpNorm(norm=norm, eps=size)
    lower, upper = (t.detach() for t in bounded.compute_bounds(x=(BoundedTensor(x, region),), method=method))
    reached = values.amax(0) - values.amin(0)
    wrong = int(((values < lower - 1e-5) | (values > upper + 1e-5)).sum())
    return {"ratio": f"{((upper - lower)[0] / reached).mean():.3f}", "violations": wrong}


@click.command(help=__doc__)
@click.option("--networks", default=",".join([*CLASSIFIERS, "control-law", "lighting"]), show_default=True)
@click.option("--radii", default="0.01,0.05,0.1", show_default=True)
@click.option("--images", default=20, show_default=True)
@click.option("--quick", is_flag=True, help="one epoch, two images, one radius")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "products.csv")
def main(networks: str, radii: str, images: int, quick: bool, out: Path) -> None:
    torch.set_num_threads(1)
    table = Table(out, COLUMNS)
    sizes = [float(r) for r in radii.split(",")][: 1 if quick else None]
    for name in networks.split(","):
        if name == "control-law":
            ranges(name, ControlLaw().eval(), torch.tensor([[0.5, -0.3]]), table, sizes)
        elif name == "lighting":
            model = Lighting(digits()[2][:1], regressor(1 if quick else 40)).eval()
            ranges(name, model, torch.zeros(1, 2), table, sizes)
        else:
            run(name, trained(name, 1 if quick else None), table, sizes, 2 if quick else images)


if __name__ == "__main__":
    main()
