"""Certifies a whole data set: sharded over processes, resumable, one CSV row per sample, and a summary."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.errors import CheckpointError, ConfigError
from lirpa_lip.training.attack import survives_pgd
from lirpa_lip.training.certifiers import Certifier, make_certifier
from lirpa_lip.training.epsilon import parse_epsilons, rounded_up
from lirpa_lip.training.sampling import derived_seed
from lirpa_lip.training.sources import ImageSource


@dataclass(frozen=True)
class CertifySettings:
    """What decides the outcome of a certification. ``eps`` is text, such as ``"0.5,36/255"``; radii are exact."""

    eps: str
    bound: str = "sdp-crown"
    certificate: str = "auto"
    delta: float = 1e-6
    radius_steps: int = 4
    image_box: bool = False
    pgd_steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        parse_epsilons(self.eps)
        if self.radius_steps < 0 or self.pgd_steps < 0:
            raise ConfigError("radius_steps and pgd_steps must not be negative.")


@dataclass(frozen=True)
class Row:
    """One sample. ``radius`` is −inf where no ball is certified; every closed ball of at most ``radius`` is safe."""

    index: int
    label: int
    prediction: int
    margin: float
    radius: float
    certificate: str
    delta: float
    pgd: dict[str, bool]

    def certified(self, eps: Fraction) -> bool:
        """Right, and known to stay so on the closed ball: ``radius`` is compared with the exact number."""
        finite = self.radius not in (float("inf"), float("-inf"))
        reaches = Fraction(self.radius) >= eps if finite else self.radius > 0
        return self.prediction == self.label and reaches


def certify_shard(
    model: nn.Module,
    data: ImageSource,
    settings: CertifySettings,
    folder: Path,
    identity: str,
    batch_size: int = 100,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Certifies this process's share of the samples that ``folder`` holds no row of yet.

    Args:
        model: in eval mode; it is used in float64 on its own device.
        identity: of the model and the data (a digest); rows of another are refused.
        progress: called with the number of samples done, after every batch.

    Raises:
        CheckpointError: the folder holds rows of another model or other settings.
    """
    _claim(folder, settings, identity, rank)
    eps = parse_epsilons(settings.eps)
    done = {row.index for row in read_rows(folder)}
    mine = torch.tensor([i for i in range(rank, len(data), processes) if i not in done], dtype=torch.int64)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    single, model = copy.deepcopy(model).float(), model.double()  # the attack has no need of float64
    certifier: Certifier | None = None
    for indices in mine.split(batch_size) if len(mine) else ():  # splitting nothing gives one empty part
        images, labels = (t.to(device) for t in data.batch(indices))
        if certifier is None:
            box = (0.0, 1.0) if settings.image_box else None
            options = (settings.certificate, settings.delta, settings.radius_steps, box)
            certifier = make_certifier(settings.bound, model, images[:1].double(), *options)
        rows = _certify_batch(model, single, certifier, images.double(), labels, indices, eps, settings)
        _append(folder / f"rows-{rank}-of-{processes}.csv", rows, list(eps))
        progress(len(indices))


def _certify_batch(
    model: nn.Module,
    single: nn.Module,
    certifier: Certifier,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    eps: dict[str, Fraction],
    settings: CertifySettings,
) -> list[Row]:
    with torch.no_grad():
        logits = model(images)
    top = logits.topk(2, dim=1)
    predictions, margins = top.indices[:, 0], top.values[:, 0] - top.values[:, 1]
    torch.manual_seed(derived_seed("certify", settings.seed, int(indices[0])))
    verdict = certifier(images, predictions, sorted(eps.values()))
    pgd: dict[str, Tensor] = {}
    if settings.pgd_steps:
        for name, value in eps.items():
            seed = derived_seed("pgd", settings.seed, int(indices[0]))
            pgd[name] = survives_pgd(single, images.float(), labels, rounded_up(value), settings.pgd_steps, seed)
    columns = torch.stack([indices, labels.cpu(), predictions.cpu()], dim=1).tolist()
    numbers = torch.stack([margins.cpu(), verdict.radius.cpu()], dim=1).tolist()
    return [
        Row(  # type: ignore[call-arg]
            *column,
            *numbers[i],
            verdict.kind,
            verdict.failure_probability,
            {name: bool(s[i]) for name, s in pgd.items()},
        )
        for i, column in enumerate(columns)
    ]


def summarise(rows: Iterable[Row], settings: CertifySettings) -> dict[str, Any]:
    """Clean accuracy and, per ε, PGD and certified accuracy (fractions of 1), with the certificate they rest on."""
    rows = list(rows)
    if not rows:
        raise ConfigError("there are no certified samples to summarise.")
    count = len(rows)
    table = [
        {
            "eps": name,
            "pgd": sum(r.pgd[name] for r in rows) / count if settings.pgd_steps else None,
            "certified": sum(r.certified(value) for r in rows) / count,
        }
        for name, value in parse_epsilons(settings.eps).items()
    ]
    kinds = sorted({r.certificate for r in rows})
    return {
        "samples": count,
        "clean": sum(r.prediction == r.label for r in rows) / count,
        "certificate": "probabilistic" if "probabilistic" in kinds else kinds[0],
        "delta_per_sample": max(r.delta for r in rows),
        "table": table,
        "settings": asdict(settings),
    }


def read_rows(folder: Path) -> list[Row]:
    """All complete rows of a certification, by index, whatever number of processes wrote them."""
    rows = {}
    for path in sorted(folder.glob("rows-*.csv")):
        with path.open(newline="") as file:
            for record in csv.DictReader(file):
                if record.get("end") == ".":  # a killed process may leave half a row
                    rows[int(record["index"])] = _row(record)
    return [rows[index] for index in sorted(rows)]


def write_merged(folder: Path, settings: CertifySettings) -> dict[str, Any]:
    """``certificates.csv`` of all samples in order, and ``summary.json``, which is returned too."""
    rows, eps = read_rows(folder), parse_epsilons(settings.eps)
    path = folder / "certificates.csv"
    with path.open("w", newline="") as file:
        names = [*_FIELDS, *(f"certified@{n}" for n in eps), *(f"pgd@{n}" for n in eps if settings.pgd_steps)]
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            certified = [int(row.certified(value)) for value in eps.values()]
            pgd = [int(row.pgd[name]) for name in eps] if settings.pgd_steps else []
            writer.writerow([*(getattr(row, name) for name in _FIELDS), *certified, *pgd])
    summary = summarise(rows, settings)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary


def identity_of(model: nn.Module, description: str) -> str:
    """A digest of the weights and of a description of the data."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


_FIELDS = ("index", "label", "prediction", "margin", "radius", "certificate", "delta")


def _claim(folder: Path, settings: CertifySettings, identity: str, rank: int) -> None:
    """Writes what the folder's rows belong to, or checks that it is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / "certify.json", {"identity": identity, "settings": asdict(settings)}
    if path.exists():
        if json.loads(path.read_text()) != mine:
            raise CheckpointError(
                f"{folder} holds certificates of another model or of other settings; choose another --out."
            )
    elif rank == 0:
        path.write_text(json.dumps(mine, indent=1))


def _append(path: Path, rows: list[Row], eps: list[str]) -> None:
    names = [*_FIELDS, *(f"pgd@{name}" for name in eps), "end"]
    before = path.read_bytes()[-1:] if path.exists() else b""
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if not before:
            writer.writerow(names)
        elif before != b"\n":  # the last row was cut short; it must not run into the next
            file.write("\r\n")
        for row in rows:
            pgd = [int(row.pgd[name]) if name in row.pgd else "" for name in eps]
            writer.writerow([*(repr(v) if isinstance(v, float) else v for v in _values(row)), *pgd, "."])


def _values(row: Row) -> list[Any]:
    return [getattr(row, name) for name in _FIELDS]


def _row(record: dict[str, str]) -> Row:
    pgd = {key[4:]: value == "1" for key, value in record.items() if key and key.startswith("pgd@") and value != ""}
    index, label, prediction = (int(record[name]) for name in ("index", "label", "prediction"))
    margin, radius, delta = (float(record[name]) for name in ("margin", "radius", "delta"))
    return Row(index, label, prediction, margin, radius, record["certificate"], delta, pgd)
