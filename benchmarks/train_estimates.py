"""How far does the product of norms that training sees lie below the true one, from one kept vector and from a block?

MNIST 4C3F, MaxMin, EMMA, ε = 1.58, the global bound, batch 128, Adam, from an orthogonal start; both from the same
weights and batches. ``upper`` is the largest constant of a difference of logits by certified norms, each within 0.1 %;
``estimate`` is what the loss saw of it, over that: 1 would be the truth.

    python benchmarks/train_estimates.py --data-dir <folder of MNIST>
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from lib.table import Table
from rich.progress import track

from lirpa_lip.losses import make_bound, make_loss, warm_norm
from lirpa_lip.training.data import DataBundle, load_data
from lirpa_lip.training.models import build_model
from lirpa_lip.training.starts import orthogonal_start

EPS, BATCH = 1.58, 128
RESULTS = Path(__file__).parent / "results" / "train_estimates.csv"
COLUMNS = "vectors lr step loss estimate upper certificate seconds_per_step".split()


def measure(vectors: int, data: DataBundle, lr: float, steps: int, every: int) -> Iterator[dict[str, object]]:
    """Trains with so many vectors a layer; a row now and then."""
    warm_norm.BLOCK = vectors
    torch.manual_seed(0)
    model = build_model("4c3f", data.shape, data.classes, "maxmin")
    orthogonal_start(model)
    order = torch.Generator().manual_seed(0)
    first, _ = data.train.batch(torch.arange(1))
    bound, loss = make_bound("global-product", model, first), make_loss("emma")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    seconds = 0.0
    for step in track(range(1, steps + 1), description=f"{vectors} vectors"):
        x, y = data.train.batch(torch.randint(len(data.train), (BATCH,), generator=order))
        due = step % every == 0
        before = copy.deepcopy(model) if due else model  # the weights that the estimate is of
        begun = time.process_time()
        output = bound(x, EPS, y)
        value = loss(output.logits, output.pair_lipschitz, EPS, y, output.region)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seconds += time.process_time() - begun
        if due:
            certified = make_bound("global-product", before, first, certificate="auto")
            upper = float(certified(x, EPS, y).pair_lipschitz.max())
            yield {
                **{"vectors": vectors, "lr": lr, "step": step, "loss": f"{value.item():.4f}"},
                **{"estimate": f"{float(output.pair_lipschitz.max()) / upper:.4f}", "upper": f"{upper:.3f}"},
                **{"certificate": certified.certificate, "seconds_per_step": f"{seconds / step:.4f}"},
            }


@click.command()
@click.option("--data-dir", default=None, help="Folder of MNIST; downloaded if left out.")
@click.option("--steps", default=300, type=click.IntRange(min=1))
@click.option("--every", default=50, type=click.IntRange(min=1))
@click.option("--lr", default=1e-3)
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path))
def main(data_dir: str | None, steps: int, every: int, lr: float, out: Path) -> None:
    torch.set_num_threads(1)
    data, table = load_data("mnist", data_dir, 0.1, 0, None), Table(out, COLUMNS)
    for vectors in (1, warm_norm.BLOCK):
        for row in measure(vectors, data, lr, steps, every):
            table.append(row)
            click.echo(" ".join(f"{name} {text}" for name, text in row.items()))


if __name__ == "__main__":
    main()
