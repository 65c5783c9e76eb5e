"""Masked spectral norms: error against time, tightness of bounds, memory, start vectors, and kernels on a GPU.

Every figure is a ratio to the published power method, or to the converged value, of the same run on the same machine.
Rows are appended to a CSV (long form: one measurement a row), plots drawn from it by ``--plot``.

    python benchmarks/norms.py --quick                       # a minute: does it run?
    python benchmarks/norms.py                               # everything the machine has data and devices for
    python benchmarks/norms.py --networks 4c3f --sections speed,bounds
    python benchmarks/norms.py --plot                        # build/figures/norms_*.png from the CSV

``seconds`` is processor time of this process on a CPU (with one thread: the time on an idle machine), and elapsed time
on a GPU; medians over ``--repeats``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from itertools import product as product_of
from pathlib import Path
from statistics import median

import click
import torch
from lib.norm_problems import SHAPES, Layer, active_layers, images, layers, network
from lib.norm_starts import starts
from lib.norm_steps import kernel_rows, step_rows, training_rows
from lib.norm_tools import peak_activations, plot
from lib.table import Table
from torch import Tensor

from lirpa_lip.norms import NormResult, masked_spectral_norm
from lirpa_lip.norms.deterministic import work
from lirpa_lip.norms.power import power
from lirpa_lip.norms.problem import prepare

RESULTS = Path(__file__).parent / "results" / "norms.csv"
COLUMNS = (
    "section network weights eliminated samples method setting iterations seconds mean_error worst_error value note"
).split()

#: Samples per network, so that a step of the power method takes some tens of milliseconds on one core.
SAMPLES = {"4c3f": 64, "6c2f": 16, "8c2f": 4}
ELIMINATED = ("0", "0.5", "0.9", "0.99", "inactive")
POWER_STEPS = (5, 10, 20, 50, 100, 200, 350, 500)
TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3, 5e-4, 3e-4, 1e-4, 3e-5, 1e-5)
#: Share of the converged product whose reaching is timed.
GOAL = 1e-3
DELTA = 1e-6

Row = dict[str, object]


def seconds_of(function: Callable[[], object], repeats: int = 1) -> tuple[float, object]:
    """Median time, and the last result."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times, result = [], None
    for _ in range(repeats):
        begin = clock()
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - begin)
    return median(times), result


def product(results: list[NormResult]) -> Tensor:
    return torch.stack([result.upper for result in results]).double().prod(0)


def solve(problem: list[Layer], **options) -> list[NormResult]:
    return [masked_spectral_norm(*layer.arguments, **options) for layer in problem]


def converged(problem: list[Layer]) -> Tensor:
    return product(solve(problem, certificate="estimate", rtol=1e-7, max_iterations=400))


def errors(values: Tensor, truth: Tensor) -> dict[str, float]:
    alive = truth > 0  # a sample with a dead layer has the product 0, exactly, in every method
    if not alive.any():
        return {}
    relative = (values[alive] / truth[alive] - 1).abs()
    return {"mean_error": relative.mean().item(), "worst_error": relative.max().item()}


def speed(problem: list[Layer], repeats: int) -> Iterator[Row]:
    """Error of the product against time, of the power method as published and of Lanczos; and the time to the goal."""
    truth = converged(problem)
    times = {}
    for method, curve in (
        ("power", _power_curve(problem, truth)),
        ("lanczos", _lanczos_curve(problem, truth, repeats)),
    ):
        rows = list(curve)
        yield from rows
        times[method] = time_to_goal([(row["seconds"], row["mean_error"]) for row in rows])
    yield {
        "method": "lanczos",
        "setting": f"power / lanczos, time to a mean error of {GOAL}",
        "value": times["power"] / times["lanczos"],
        "note": f"power {times['power']:.3g} s, lanczos {times['lanczos']:.3g} s",
    }


def time_to_goal(curve: list[tuple[float, float]]) -> float:
    """When the error first falls to the goal, by log-log interpolation; infinite if it never does."""
    for (t0, e0), (t1, e1) in pairwise(curve):
        if e1 <= GOAL < e0:
            share = math.log(e0 / GOAL) / math.log(e0 / max(e1, 1e-12))
            return t0 * (t1 / t0) ** share
    return curve[0][0] if curve[0][1] <= GOAL else math.inf


@torch.no_grad()
def _power_curve(problem: list[Layer], truth: Tensor) -> Iterator[Row]:
    """One run of 500 steps, stopped now and then for its value; a layer that has stopped by itself stays stopped."""
    prepared = [prepare(*layer.arguments)[1] for layer in problem]
    starts: list[Tensor | None] = [None] * len(problem)
    results: list[NormResult | None] = [None] * len(problem)
    finished, total, done = [False] * len(problem), 0.0, 0
    for steps in POWER_STEPS:
        for i, one in enumerate(prepared):
            if not finished[i]:
                took, result = seconds_of(partial(power, one, starts[i], steps - done, None))
                total += took
                results[i], starts[i] = result, result.right
                finished[i] = result.iterations < steps - done
        yield {
            "method": "power",
            "setting": f"{steps} steps",
            "iterations": steps,
            "seconds": total,
            **errors(product([r for r in results if r is not None]), truth),
        }
        done = steps
        if all(finished):
            return


def _lanczos_curve(problem: list[Layer], truth: Tensor, repeats: int) -> Iterator[Row]:
    """Median times, and errors over the samples of all repeats: each begins at random, and some are caught low."""
    for rtol in TOLERANCES:
        options = {"certificate": "estimate", "rtol": rtol, "max_iterations": 400}
        runs = [seconds_of(lambda options=options: solve(problem, **options)) for _ in range(repeats)]
        values = torch.cat([product(results) for _, results in runs])
        yield {
            "method": "lanczos",
            "setting": f"rtol {rtol:g}",
            "iterations": max(r.iterations for _, results in runs for r in results),
            "seconds": median(took for took, _ in runs),
            **errors(values, truth.repeat(repeats)),
        }


def bounds(problem: list[Layer], repeats: int) -> Iterator[Row]:
    """Products of certified bounds over the converged product: delta split over the layers, or none."""
    truth = converged(problem)
    for rtol in (1e-2, 1e-3):
        options = {"certificate": "probabilistic", "delta": DELTA / len(problem), "rtol": rtol, "max_iterations": 150}
        took, results = seconds_of(lambda options=options: solve(problem, **options), repeats)
        yield {
            "method": "polynomial",
            "setting": f"rtol {rtol:g}, delta {DELTA:g}",
            "seconds": took,
            "iterations": max(r.iterations for r in results),
            **errors(product(results), truth),
        }
    few = [layer.batch(slice(0, 4)) for layer in problem]
    costs = [min(work(prepare(*layer.arguments)[1]).values()) for layer in few]
    dense = [layer for layer in few if layer.map.in_shape == torch.Size([layer.map.in_numel])]
    for name, part in (("all layers", few), ("dense layers", dense)):
        if name == "all layers" and max(costs) > 4e10:
            yield {"method": "cholesky", "setting": name, "note": f"left out: {max(costs):.1e} operations a sample"}
            continue
        took, results = seconds_of(lambda part=part: solve(part, certificate="deterministic"))
        yield {
            "method": "cholesky",
            "setting": name,
            "seconds": took / 4 * len(problem[0].mask_out),
            "samples": 4,
            "note": "seconds scaled to all samples",
            **errors(product(results), converged(part)),
        }


def elimination(name: str, repeats: int) -> Iterator[Row]:
    """How the time of the widest dense layer falls with the share of units eliminated."""
    shape = SHAPES[name][0]
    for kind, options in (("estimate", {"rtol": 1e-3}), ("probabilistic", {"delta": DELTA}), ("deterministic", {})):
        first = None
        for eliminated in (0.01, 0.5, 0.9, 0.99):  # with none, all samples are one problem, which is solved once
            problem = layers(network(name, "random"), shape, SAMPLES[name], eliminated)
            dense = max((one for one in problem if len(one.map.in_shape) == 1), key=lambda one: one.map.in_numel)
            took, _ = seconds_of(lambda d=dense, o=options, k=kind: solve([d], certificate=k, **o), repeats)
            first = first or took
            yield {
                "weights": "random",
                "eliminated": eliminated,
                "method": kind,
                "seconds": took,
                "setting": f"dense {tuple(dense.map.weight.shape)}",
                "value": first / took,
                "note": "value: times faster than with 1 % eliminated",
            }


def memory(problem: list[Layer]) -> Iterator[Row]:
    """Most bytes that a solve holds at once beside its input, over those of the layer's larger activation."""
    vectors = {"vectors": True}
    for kind, options in product_of(("estimate", "probabilistic"), ({}, vectors)):
        for i, layer in enumerate(problem):
            run = partial(solve, [layer], certificate=kind, max_iterations=100, **options)
            width = 8 if kind == "probabilistic" else 4
            activation = len(layer.mask_out) * max(layer.map.in_numel, layer.map.out_numel) * width
            # a certificate works on a float64 copy of the map's tensors, which no batch makes larger
            copied = 0 if kind == "estimate" else weight_count(layer) * width / activation
            yield {
                "method": kind + (" with vectors" if options else ""),
                "setting": f"layer {i + 1}",
                "value": peak_activations(run, activation),
                "note": f"peak bytes / one activation, same precision; {copied:.3g} of them the map in float64",
            }


def weight_count(layer: Layer) -> int:
    counted: list[int] = []
    layer.map.rebuild(lambda t: counted.append(t.numel()) or t, lambda t: t)
    return sum(counted)


def problems(name: str, quick: bool) -> Iterator[tuple[str, str, list[Layer]]]:
    samples = 4 if quick else SAMPLES[name]
    for weights in ("random", "trained"):
        try:
            model = network(name, weights)
        except FileNotFoundError as missing:
            click.echo(f"{name}, {weights} weights: {missing}; left out")
            continue
        for eliminated in ("0.5",) if quick else ELIMINATED:
            if eliminated == "inactive":
                if weights == "trained":
                    yield weights, eliminated, active_layers(model, images(name, samples))
            else:
                yield weights, eliminated, layers(model, SHAPES[name][0], samples, float(eliminated))


def measured(names: list[str], sections: list[str], quick: bool, repeats: int) -> Iterator[Row]:
    for name in names:
        for weights, eliminated, problem in problems(name, quick):
            base = {"network": name, "weights": weights, "eliminated": eliminated, "samples": len(problem[0].mask_out)}
            if "speed" in sections:
                yield from ({"section": "speed", **base, **row} for row in speed(problem, repeats))
            if "bounds" in sections:
                yield from ({"section": "bounds", **base, **row} for row in bounds(problem, 1))
            if "memory" in sections and eliminated == "0.5":
                yield from ({"section": "memory", **base, **row} for row in memory(problem))
        if "elimination" in sections and name == "4c3f":
            yield from (
                {"section": "elimination", "network": name, "samples": 64, **r} for r in elimination(name, repeats)
            )
        if "step" in sections:
            base = {
                "section": "step",
                "network": name,
                "weights": "random",
                "samples": SAMPLES[name],
                "eliminated": 0.5,
            }
            yield from ({**base, **row} for row in step_rows(name, 2 if quick else SAMPLES[name], seconds_of))
        if "training" in sections and name != "8c2f":
            base = {"section": "training", "network": name, "weights": "random", "eliminated": "inactive"}
            yield from ({**base, **row} for row in training_rows(name, seconds_of))
        if "starts" in sections and SHAPES[name][2] is not None and not quick:
            base = {"section": "starts", "network": name, "weights": "trained", "samples": 64}
            yield from ({**base, **row} for row in starts(name))
    if "kernels" in sections:
        yield from ({"section": "kernels", **row} for row in kernel_rows(seconds_of))


@click.command()
@click.option("--networks", default=",".join(SHAPES), show_default=True)
@click.option("--sections", default="speed,bounds,elimination,memory,starts,step,training,kernels", show_default=True)
@click.option("--quick", is_flag=True, help="4 samples, one share of eliminated units: does it run?")
@click.option("--repeats", default=5, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=Path, default=RESULTS, show_default=True)
@click.option("--plot", "draw", is_flag=True, help="Draw build/figures/norms_*.png from the CSV; measure nothing.")
def main(networks: str, sections: str, quick: bool, repeats: int, threads: int, out: Path, draw: bool) -> None:
    """Measure masked spectral norms; append to a CSV."""
    if draw:
        plot(out, Path("build") / "figures")
        return
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    out = out.with_suffix(".quick.csv") if quick else out
    table = Table(out, COLUMNS)
    for row in measured(networks.split(","), sections.split(","), quick, 1 if quick else repeats):
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        table.append(shown)
        click.echo("  ".join(str(shown[key]) for key in COLUMNS if key in shown))


if __name__ == "__main__":
    main()
