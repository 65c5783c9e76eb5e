"""Branch and bound on the images that neither an attack nor `sdp-crown` decides: SDP-CROWN's networks and radii.

Three stages, one CSV row per image and network: PGD with restarts, `sdp-crown` over the ball cut by [0, 1], and what
both leave open is branched on. ``cpu_seconds`` is processor time of this process, one thread: what an idle core takes.
A counterexample that branching meets is evaluated by the model itself, and counts only if its class is another.

    python benchmarks/branching.py --networks sdpcrown_mnist_mlp --seconds 60
    python benchmarks/branching.py --quick                    # ten images, a few seconds each: does it run?

Images that the CSV has are not run again, so that a killed run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
from lib.attack import strongest
from lib.networks import SHARED, cnn_a, load_images
from lib.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.margin import certified, margin_specification
from lirpa_lip.training.epsilon import parse_epsilon, rounded_up
from lirpa_lip.training.models import Normalize
from lirpa_lip.verify.branching import decide

COLUMNS = "network eps image correct stage status lower domains cpu_seconds time_limit certificate delta".split()
#: Of SDP-CROWN's CIFAR networks, in [0, 1].
_MEAN, _STD = (125.3 / 255, 123.0 / 255, 113.9 / 255), (0.225, 0.225, 0.225)
_PGD_STEPS, _RESTARTS = 100, 3


def _mlp() -> nn.Sequential:
    hidden = nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def _convsmall() -> nn.Sequential:
    features = nn.Conv2d(3, 16, 4, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(1152, 100), nn.ReLU(), nn.Linear(100, 10))


#: Name -> (constructor, images, radius).
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], str, str]] = {
    "sdpcrown_mnist_mlp": (_mlp, "mnist", "1.0"),
    "sdpcrown_cifar_cnn_a": (lambda: cnn_a(3, 16, 2048), "cifar", "24/255"),
    "sdpcrown_cifar_convsmall": (_convsmall, "cifar", "24/255"),
}


def load(name: str) -> tuple[nn.Module, Tensor, Tensor, float, str]:
    """The network, its 200 images and labels, the radius and its text."""
    make, images, text = NETWORKS[name]
    model: nn.Module = make()
    model.load_state_dict(load_file(SHARED / "models" / f"{name}.safetensors"))
    if images == "cifar":
        model = nn.Sequential(Normalize(_MEAN, _STD), model)
    x, y = load_images(images)
    return model.eval(), x, y, rounded_up(parse_epsilon(text), x.dtype), text


def run(name: str, table: Table, seconds: float, wanted: Sequence[int]) -> None:
    """Every wanted image of a network that the table lacks."""
    done = {int(row["image"]) for row in table.rows() if row["network"] == name}
    model, x, y, eps, text = load(name)
    left = [k for k in wanted if k not in done]
    if not left:
        return
    attacked = strongest(model, x[left], y[left], eps, _PGD_STEPS, _RESTARTS)
    config = LocalLipConfig(image_box=(0.0, 1.0), norm_tolerance=1e-3)
    bounded = BoundedModule(model, x[:1], bound_opts={"local_lip": config})
    for place, k in enumerate(left):
        image, label = x[k : k + 1], y[k : k + 1]
        row: dict[str, object] = {"network": name, "eps": text, "image": k, "time_limit": seconds}
        row["correct"] = int(model(image).argmax() == label)
        if not row["correct"]:
            row.update(stage="clean", status="refuted")
        elif model(attacked[place : place + 1]).argmax() != label:
            row.update(stage="attack", status="refuted")
        else:
            row.update(_decided(model, bounded, image, label, eps, seconds))
            print(*row.values(), flush=True)
        table.append(row)


def _decided(model: nn.Module, bounded: BoundedModule, x: Tensor, y: Tensor, eps: float, seconds: float) -> dict:
    region = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    c = margin_specification(y, model(x).shape[1], x.dtype)
    begun = time.process_time()
    lower, _ = bounded.compute_bounds(x=region, C=c, method="sdp-crown", bound_upper=False, decision_thresh=0.0)
    worth = bounded.last_certificate
    if bool(certified(lower).all()):
        used = time.process_time() - begun
        return {"stage": "sdp-crown", "status": "verified", "lower": f"{lower.min().item():.5f}", "domains": 1,
                "cpu_seconds": f"{used:.3g}", "certificate": worth[0], "delta": worth[1]}  # fmt: skip
    found = decide(bounded, region, c[0], time_limit=seconds, clock=time.process_time)
    status: str = found.status
    if found.counterexample is not None and model(found.counterexample.to(x.dtype)).argmax() != y:
        status = "refuted"
    return {"stage": "branching", "status": status, "lower": f"{found.lower.min().item():.5f}",
            "domains": found.domains, "cpu_seconds": f"{time.process_time() - begun:.3g}",
            "certificate": found.certificate.kind, "delta": found.certificate.delta}  # fmt: skip


def summary(table: Table, name: str) -> str:
    rows = [row for row in table.rows() if row["network"] == name]
    share = 100 / max(1, len(rows))

    def percent(wanted: Callable[[dict[str, str]], bool]) -> float:
        return share * sum(map(wanted, rows))

    first = percent(lambda r: r["stage"] == "sdp-crown")
    held = percent(lambda r: r["status"] == "verified")
    left = percent(lambda r: r["status"] == "open")
    attacked = percent(lambda r: r["correct"] == "1" and r["stage"] != "attack")
    bounds = f"sdp-crown {first:.1f} %, certified {held:.1f} %, open {left:.1f} %"
    return f"{name}: {len(rows)} images, PGD {attacked:.1f} %, {bounds}"


@click.command()
@click.option("--networks", default=",".join(NETWORKS), show_default=True)
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Processor time an image, about.")
@click.option("--images", type=click.IntRange(1, 200), default=200, show_default=True)
@click.option("--only", help="Numbers of images, such as 4,19, in place of all.")
@click.option("--quick", is_flag=True, help="Ten images of the first network, five seconds each.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "branching.csv")
def main(networks: str, seconds: float, images: int, only: str | None, quick: bool, out: Path) -> None:
    """Measure, image by image."""
    names = networks.split(",")
    if quick:
        names, seconds, images = names[:1], 5.0, 10
    torch.manual_seed(0)
    table = Table(out, COLUMNS)
    for name in names:
        if not (SHARED / "models" / f"{name}.safetensors").is_file():
            print(f"{name} skipped: its weights are not there; set LIRPA_LIP_SHARED to the folder that holds models/.")
            continue
        with torch.no_grad():
            run(name, table, seconds, [int(k) for k in only.split(",")] if only else range(images))
        print(summary(table, name))


if __name__ == "__main__":
    main()
