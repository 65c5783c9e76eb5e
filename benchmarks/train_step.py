"""What one training step costs, as a multiple of a plain cross-entropy step on the same batch.

    python benchmarks/train_step.py                              # MNIST 4C3F and CIFAR 6C2F, on what is there
    python benchmarks/train_step.py --arch 4c3f --batch-size 64

Plain, global, local product and composed bounds in the GloRo loss, the local product with interval gradients (BCP, or
a sparsity loss), and our own rendering of the published step with its vectors per image; all in turn within one run, so
that a busy machine slows them alike. On a CPU seconds are processor seconds. Rows are appended to a CSV file.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from lib.published_step import PublishedStep
from lib.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lirpa_lip.training.models import build_model
from lirpa_lip.training.objective import Objective

RESULTS = Path(__file__).parent / "results" / "train_step.csv"
INPUTS = {"4c3f": (1, 28, 28), "6c2f": (3, 32, 32), "8c2f": (3, 64, 64), "cnn-small": (1, 28, 28)}
#: Rounds that are not counted: at first, norms are checked often against better ones, later every fifty steps.
WARM_UP = 10
FIELDS = ("arch", "activation", "batch", "step", "seconds", "quartile_low", "quartile_high", "times_plain",
          "kept_floats", "peak_gib")  # fmt: skip
Step = Callable[[], Tensor]


def steps_of(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, tuple[Step, int]]:
    """Name -> (the loss of one step, floats that it keeps from step to step)."""
    found: dict[str, tuple[Step, int]] = {"plain": (lambda: F.cross_entropy(model(x), y), 0)}
    variants = {
        "global": ("gloro", "global-product", {}),
        "local product": ("gloro", "local-product", {}),
        "local product, 1 iteration": ("gloro", "local-product", {"iterations": 1}),
        "local product, interval gradients": ("bcp", "local-product", {}),
        "composed": ("gloro", "local-lip", {}),
    }
    for name, (loss, bound, options) in variants.items():
        objective = Objective(model, x[:1], loss, bound, **options).to(x.device)
        kept = sum(buffer.numel() for key, buffer in objective.named_buffers() if key.startswith("bound."))
        found[name] = (lambda objective=objective: objective(x, y, eps, 0.0)[0], kept)
    published, index = PublishedStep(model, x[:1], len(x), iterations=5 if x.shape[1] == 1 else 2), torch.arange(len(x))
    training_images = 60_000 if x.shape[1] == 1 else 50_000
    found["published"] = (
        lambda: F.cross_entropy(published(x, eps, y, index), y),
        published.stored_floats_per_image * training_images,
    )
    return found


def timed(step: Step, model: nn.Module, device: torch.device) -> tuple[float, float]:
    """Seconds and peak memory (GiB, CUDA only) of the loss and its gradient."""
    clock = time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        clock = time.perf_counter
    begun = clock()
    model.zero_grad()
    step().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begun, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


@click.command()
@click.option("--arch", type=click.Choice(list(INPUTS)), multiple=True, default=("4c3f", "6c2f"), show_default=True)
@click.option("--activation", default="clipped_relu", show_default=True)
@click.option("--batch-size", default=None, type=int, help="[default: 64, on CUDA 256]")
@click.option("--repeats", default=7, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(arch: tuple[str, ...], activation: str, batch_size: int | None, repeats: int, out: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = batch_size or (256 if device.type == "cuda" else 64)
    table = Table(out, FIELDS)
    for name in arch:
        torch.manual_seed(0)
        model = build_model(name, INPUTS[name], 10, activation).to(device)
        x, y = torch.rand(batch, *INPUTS[name], device=device), torch.randint(0, 10, (batch,), device=device)
        steps = steps_of(model, x, y, 0.3)
        measured: dict[str, list[tuple[float, float]]] = {label: [] for label in steps}
        for repeat in range(WARM_UP + repeats):  # interleaved
            for label, (step, _) in steps.items():
                result = timed(step, model, device)
                if repeat >= WARM_UP:
                    measured[label].append(result)
        plain = statistics.median(seconds for seconds, _ in measured["plain"])
        for label, results in measured.items():
            low, middle, high = statistics.quantiles([seconds for seconds, _ in results], n=4)
            peak = max(memory for _, memory in results)
            values = (
                name,
                activation,
                batch,
                label,
                f"{middle:.5f}",
                f"{low:.5f}",
                f"{high:.5f}",
                f"{middle / plain:.2f}",
            )
            table.append(dict(zip(FIELDS, (*values, steps[label][1], f"{peak:.2f}"), strict=True)))
            click.echo(
                f"{name:10s} {label:36s} {middle:8.4f} s  {middle / plain:5.2f} ×  keeps {steps[label][1]:,} floats"
            )


if __name__ == "__main__":
    main()
