"""What a certificate costs, over a plain forward pass of the same images, on networks of rising size.

    python benchmarks/scale.py                                          # everything; hours for the largest
    python benchmarks/scale.py --networks 4c3f,6c2f --batches 1,8       # these
    python benchmarks/scale.py --quick                                  # does it run?

Random weights, ε = 8/255, uniform images. Every row is measured in a process of its own, with one thread: the forward
pass (float32, the median of several) and the call in turn, in processor seconds; and that process's peak of memory.
A row that takes longer than ``--row-seconds`` is ended, and the CSV says so. ``grad`` is whether the caller records
gradients, as one does who never writes ``torch.no_grad()``. Freed memory is kept, as the commands do.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from lib.scale_networks import NETWORKS, make_network
from lib.table import Table
from torch import Tensor

EPS = 8 / 255
#: Forward passes that are timed, the first two not counted.
FORWARDS = 12
CALLS = ("local-lip", "constant", "crown")
COLUMNS = "network parameters neurons batch call grad forward seconds ratio seconds_per_image peak_gib note".split()


def seconds_of(work: Callable[[], object]) -> float:
    """Processor seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def call_of(bounded, x: Tensor, name: str) -> Callable[[], object]:
    """The call that is timed: bounds of all logits, or their Lipschitz constant on the ball."""
    from lirpa_lip import BoundedTensor, PerturbationLpNorm

    ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=EPS))
    if name == "constant":
        return lambda: bounded.local_lipschitz((ball,))
    return lambda: bounded.compute_bounds(x=(ball,), method=name)


def measure(network: str, batch: int, call: str, grad: bool) -> dict:
    """One row."""
    from lirpa_lip import BoundedModule, keep_freed_memory
    from lirpa_lip.network.graph import build_graph

    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", module="auto_LiRPA")
    model, shape = make_network(network)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1))
    bounded = BoundedModule(model, x[:1])
    neurons = sum(node.shape.numel() for node in build_graph(bounded).activations)
    with torch.set_grad_enabled(grad):
        work = call_of(bounded, x, call)
        with torch.no_grad():
            forward = [seconds_of(lambda: model(x)) for _ in range(FORWARDS)][2:]
        seconds = seconds_of(work)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "neurons": neurons,
        "forward": f"{median(forward):.4g}",
        "seconds": f"{seconds:.4g}",
        "ratio": f"{seconds / median(forward):.0f}",
        "seconds_per_image": f"{seconds / batch:.4g}",
        "peak_gib": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}",
    }


def row_of(key: dict, limit: float) -> dict:
    """The row, from a process of its own; or why there is none."""
    command = [sys.executable, __file__, "--row", json.dumps(key)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"note": f"not finished in {limit:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return {"note": f"failed: {last[:120]}"}
    return json.loads(done.stdout.splitlines()[-1])


@click.command()
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option("--batches", default="1,8", show_default=True)
@click.option("--calls", default="local-lip,constant", show_default=True, help=f"Of {', '.join(CALLS)}.")
@click.option("--grad", type=click.Choice(["both", "yes", "no"]), default="both", show_default=True)
@click.option("--row-seconds", type=float, default=3000.0, show_default=True, help="Wall-clock seconds of a row.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "scale.csv")
@click.option("--quick", is_flag=True, help="4C3F, one image.")
@click.option("--row", hidden=True)
def main(networks, batches, calls, grad, row_seconds, out, quick, row):
    """Measure, row by row; each is appended to the CSV."""
    if row is not None:
        print(json.dumps(measure(**json.loads(row))))
        return
    if quick:
        networks, batches, calls, grad = "4c3f", "1", "local-lip", "no"
    table = Table(out, COLUMNS)
    for network in networks.split(","):
        for batch in map(int, batches.split(",")):
            for call in calls.split(","):
                for recorded in {"both": (False, True), "yes": (True,), "no": (False,)}[grad]:
                    key = {"network": network, "batch": batch, "call": call, "grad": recorded}
                    found = {**key, **row_of(key, row_seconds)}
                    table.append(found)
                    click.echo(" ".join(f"{k}={v}" for k, v in found.items() if v != ""))


if __name__ == "__main__":
    main()
