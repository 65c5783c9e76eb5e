"""What does it cost to certify test images at one radius, over a forward pass, with a network trained for certificates?

    python benchmarks/certify_cost.py --data-dir DATA                            # 1,000 images, three bounds
    python benchmarks/certify_cost.py --data-dir DATA --methods local-product    # one
    python benchmarks/certify_cost.py --data-dir DATA --images 20                # does it run?

`lirpa_lip.certify` without a search of radii, of the networks in `examples/pretrained` at the radius they were trained
for: an image is out with the first stage that decides it. Processor seconds of one thread, all that images share
included, over those of float32 forward passes in batches of the same size, medians.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import click
import torch
from lib.table import Table

ROOT = Path(__file__).resolve().parents[1]
PRETRAINED = ROOT / "examples" / "pretrained"
RESULTS = Path(__file__).parent / "results" / "certify_cost.csv"
COLUMNS = "network eps method images batch clean certified certificate delta forward seconds ratio".split()
METHODS = ("global-product", "local-product", "local-lip", "sdp-crown")
FORWARDS = 20


def measure(network: Path, method: str, data_dir: str | None, images: int, batch: int) -> dict:
    """One row."""
    import lirpa_lip
    from lirpa_lip.results import weakest
    from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
    from lirpa_lip.training.run_state import config_of, data_of, model_from

    loaded = load_checkpoint(find_checkpoint(network))
    model, eps = model_from(loaded, None, False).eval(), config_of(loaded).radius
    x, labels = data_of(loaded, data_dir).test.batch(torch.arange(images))
    x, forward = x.float(), []
    with torch.no_grad():
        for _ in range(FORWARDS + 2):
            began = time.process_time()
            model(x[:batch])
            forward.append((time.process_time() - began) / len(x[:batch]))
    began = time.process_time()
    found = lirpa_lip.certify(model, x, labels, eps, method=method, radius_steps=0, batch_size=batch)
    seconds = (time.process_time() - began) / images
    worth = weakest(c.worth for c in found)
    return {
        "clean": f"{sum(c.prediction == c.label for c in found) / images:.4f}",
        "certified": f"{sum(c.certified for c in found) / images:.4f}",
        "eps": eps,
        "certificate": worth.kind,
        "delta": worth.delta,
        "forward": f"{median(forward[2:]):.4g}",
        "seconds": f"{seconds:.4g}",
        "ratio": f"{seconds / median(forward[2:]):.0f}",
    }


@click.command()
@click.option("--networks", default=",".join(sorted(p.name for p in PRETRAINED.iterdir() if p.is_dir())))
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--data-dir", help="Folder of the data; downloaded if left out.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(networks, methods, images, batch_size, data_dir, out):
    """Certify, and write a row for each network and method."""
    from lirpa_lip import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    table = Table(out, COLUMNS)
    for network in networks.split(","):
        for method in methods.split(","):
            key = {"network": network, "method": method, "images": images, "batch": batch_size}
            row = {**key, **measure(PRETRAINED / network, method, data_dir, images, batch_size)}
            table.append(row)
            click.echo(" ".join(f"{name}={value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
