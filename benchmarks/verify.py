"""Certified accuracy and time per image of every method, ours and others', on given and on trained networks.

One CSV row per network, radius and method; rows that the CSV holds already are not measured again. Every row is also
checked for soundness: the margins at random and attacked points of the balls must not fall below their certified
bounds, nor gradients of margins there exceed Lipschitz bounds. ``violations`` counts them and must be 0.

    python benchmarks/verify.py --quick                     # a few images: does it run?
    python benchmarks/verify.py --images 100                # everything, as far as the files are there
    python benchmarks/verify.py --networks cifar_base --methods crown,local-lip --images 20 --fresh

``seconds_per_image`` is wall-clock time, ``cpu_seconds_per_image`` the processor time of this process (with one
thread the time on an idle machine); both are medians over batches. A method stops after ``--row-seconds`` of processor
time, at the end of a batch: ``images`` says how many it saw, and ``verdicts`` has a digit for each, in order, so that
methods can be compared on the images they share.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import click
import torch
from lib.attack import sampled_points, strongest
from lib.networks import GIVEN, load_given
from lib.table import Table, read
from small_lipschitz import load_trained
from torch import Tensor, nn

from lirpa_lip.comparison import METHODS, make_method
from lirpa_lip.margin import certified, margin_specification
from lirpa_lip.regions.sizes import safe_norm
from lirpa_lip.results import weakest
from lirpa_lip.training.epsilon import parse_epsilon, rounded_up

COLUMNS = (
    "network eps images method clean pgd certified mean_worst_margin seconds_per_image cpu_seconds_per_image "
    "certificate delta samples_checked violations note verdicts"
).split()

#: Network -> radii, in the order in which they are run.
RADII = {
    "mnist_cnn_a_adv": "0.1 0.2 0.3",
    "cifar_cnn_a_adv": "8/255 16/255 24/255",
    "small_mnist_mlp": "1.0",
    "small_mnist_conv": "0.3",
    "small_cifar_cnn_a": "24/255",
    "cifar_cnn_a_mix": "8/255 16/255",
    "cifar_base": "8/255 16/255",
    "cifar_resnet2b": "8/255 16/255",
}
#: Margins in float32 have errors of about this size, relative to the logits.
TOLERANCE = 1e-5
PGD_STEPS = 60
RANDOM_POINTS = 20


class Case:
    """One network at one radius: images, labels, rows, and the points its bounds are checked at."""

    def __init__(self, name: str, eps: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.name, self.text, self.eps, self.model, self.x, self.y = (
            name,
            eps,
            rounded_up(parse_epsilon(eps), x.dtype),
            model,
            x,
            y,
        )
        self.c = margin_specification(y, model(x[:1]).shape[1], x.dtype)
        self.correct = model(x).argmax(1) == y
        attacked = strongest(model, x, y, self.eps, PGD_STEPS)
        random = sampled_points(x, self.eps, RANDOM_POINTS)
        self.points = torch.cat([random, attacked.unsqueeze(0)])
        self.robust = self.correct & (model(attacked).argmax(1) == y)
        self.margins = torch.stack([torch.einsum("bso,bo->bs", self.c, model(p)) for p in self.points])
        self.scale = model(x).abs().amax(1, keepdim=True)

    def describe(self, seen: int) -> dict:
        share = {"clean": self.correct, "pgd": self.robust}
        return {k: f"{float(v[:seen].float().mean()):.4f}" for k, v in share.items()}

    def violations(self, lower: Tensor, batch: slice) -> int:
        """Margins at known points below their bound, by more than rounding."""
        slack = TOLERANCE * self.scale[batch]
        return int((self.margins[:, batch] < lower - slack).sum())


def gradients(model: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    """Of every row of ``C f`` at x, ``(batch, specs, inputs)``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        margins = torch.einsum("bso,bo->bs", c, model(x))
        found = [torch.autograd.grad(m.sum(), x, retain_graph=True)[0].flatten(1) for m in margins.unbind(1)]
    return torch.stack(found, dim=1)


def gradient_violations(case: Case, method, images: int = 4) -> int:
    """Gradients of margins at known points that exceed the method's Lipschitz bounds."""
    batch = slice(0, images)
    found = method.lipschitz(case.x[batch], case.c[batch], case.eps)
    if found is None:
        return 0
    sizes = [safe_norm(gradients(case.model, p[batch], case.c[batch])) for p in case.points]
    return int((torch.stack(sizes) > found.upper * (1 + TOLERANCE)).sum())


def measure(case: Case, name: str, batch_size: int, limit: float, steps: int) -> dict:
    """The row of one method."""
    method = make_method(name, case.model, case.x[:1], steps)
    wall, processor, verdicts, worst, broken, worths = [], [], [], [], 0, []
    began = time.process_time()
    for start in range(0, len(case.x), batch_size):
        batch = slice(start, min(start + batch_size, len(case.x)))
        size = batch.stop - start
        clock, cpu = time.perf_counter(), time.process_time()
        bounds = method.lower(case.x[batch], case.c[batch], case.eps)
        wall.append((time.perf_counter() - clock) / size)
        processor.append((time.process_time() - cpu) / size)
        verdicts.append(certified(bounds.lower) & case.correct[batch])
        worst.append(bounds.lower.amin(1))
        broken += case.violations(bounds.lower, batch)
        worths.append(bounds.worth)
        if time.process_time() - began > limit:
            break
    broken += gradient_violations(case, method)
    seen = torch.cat(verdicts)
    kind, delta = weakest(worths)
    return {
        "images": len(seen),
        **case.describe(len(seen)),
        "certified": f"{float(seen.float().mean()):.4f}",
        "mean_worst_margin": f"{float(torch.cat(worst).mean()):.4f}",
        "seconds_per_image": f"{median(wall):.4g}",
        "cpu_seconds_per_image": f"{median(processor):.4g}",
        "certificate": kind,
        "delta": delta,
        "samples_checked": len(case.points) * len(seen),
        "violations": broken,
        "note": "" if len(seen) == len(case.x) else f"stopped after {limit:g} s of processor time",
        "verdicts": "".join(str(int(v)) for v in seen),
    }


def cases(networks: list[str], eps: str | None) -> Iterator[tuple[str, str]]:
    for name in networks:
        for radius in eps.split(",") if eps else RADII[name].split():
            yield name, radius


def load(name: str, images: int, cache: Path) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = load_given(name) if name in GIVEN else load_trained(name, cache)
    return model, x[:images], y[:images]


def not_run(reason: str) -> dict:
    return {"images": 0, "note": f"not run: {reason}", "certified": "", "violations": 0}


@click.command()
@click.option("--images", type=click.IntRange(1, 200), default=100, show_default=True)
@click.option("--networks", default=",".join(RADII), show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--eps", help="Radii in pixels of [0, 1], such as 0.1,8/255.  [default: the benchmark's own]")
@click.option("--steps", type=int, default=20, show_default=True, help="Of methods that optimise.")
@click.option("--batch", type=int, default=10, show_default=True)
@click.option("--row-seconds", type=float, default=60.0, show_default=True, help="Processor time of one row, about.")
@click.option("--cost-limit", type=float, default=8.0, show_default=True, help="Seconds per image, at most.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "verify.csv")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the figure here when done.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("build"), show_default=True)
@click.option("--fresh", is_flag=True, help="Measure again what is asked for.")
@click.option("--quick", is_flag=True, help="4 images of the first network, one radius, one step.")
def main(images, networks, methods, eps, steps, batch, row_seconds, cost_limit, out, figure, cache, fresh, quick):
    """Measure, row by row."""
    from rich.console import Console

    warnings.filterwarnings("ignore", module="auto_LiRPA")
    console = Console()
    if quick:
        images, networks, eps, steps = 4, networks.split(",")[0], eps or "0.1", 1
    asked = set(itertools.product(cases(networks.split(","), eps), methods.split(",")))
    table = Table(out, COLUMNS)
    kept = [r for r in table.rows() if not (fresh and ((r["network"], r["eps"]), r["method"]) in asked)]
    table.rewrite(kept)
    done = {(r["network"], r["eps"], r["method"]) for r in kept}
    for name, radius in cases(networks.split(","), eps):
        wanted = [m for m in methods.split(",") if (name, radius, m) not in done]
        if not wanted:
            continue
        try:
            case = Case(name, radius, *load(name, images, cache))
        except FileNotFoundError as error:
            console.print(f"{name} skipped: {error}")
            continue
        for method in wanted:
            row = _row(case, method, batch, row_seconds, cost_limit, steps)
            table.append({"network": name, "eps": radius, "method": method, **row})
            shown = "images certified pgd cpu_seconds_per_image violations note".split()
            text = " ".join(f"{key}={row[key]}" for key in shown if row.get(key) not in (None, ""))
            console.print(f"{name} {radius} {method} {text}", highlight=False, soft_wrap=True)
    if figure is not None:
        from figures import draw_verification

        draw_verification(read(out), figure)


def _row(case: Case, method: str, batch: int, row_seconds: float, cost_limit: float, steps: int) -> dict:
    """One image first: a method that costs more than the limit is not run, one that is dear in smaller batches."""
    began = time.process_time()
    with torch.no_grad():
        trial = make_method(method, case.model, case.x[:1], steps)
        begun = time.process_time()
        trial.lower(case.x[:1], case.c[:1], case.eps)
        cost = time.process_time() - begun
        if cost > cost_limit:
            return not_run(f"{cost:.0f} s of processor time for an image")
        remaining = max(row_seconds - (time.process_time() - began), cost)
        return measure(case, method, max(4, min(batch, int(remaining / (2 * cost)))), remaining, steps)


if __name__ == "__main__":
    main()
