"""Certifies a whole data set: sharded over processes, resumable, one CSV row per sample, and a summary."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.errors import CheckpointError, ConfigError
from lirpa_lip.memory_limit import Halving
from lirpa_lip.methods import current_name
from lirpa_lip.norms.draw import seeds_of
from lirpa_lip.ranges import COUNT, NOT_NEGATIVE, check_delta
from lirpa_lip.results import weakest
from lirpa_lip.training.attack import survives_pgd
from lirpa_lip.training.certifiers import Certifier, Verdict, make_certifier, shared_settings
from lirpa_lip.training.claim import check_samples, claim, digest_of, identity_of
from lirpa_lip.training.epsilon import parse_epsilons, rounded_up
from lirpa_lip.training.rows import FIELDS, Row, append_rows, read_rows, values, write_whole
from lirpa_lip.training.sampling import derived_seed
from lirpa_lip.training.sources import ImageSource

__all__ = ["CertifySettings", "Row", "certify_shard", "identity_of", "read_rows", "summarise", "write_merged"]


@dataclass(frozen=True)
class CertifySettings:
    """What decides the outcome of a certification. ``eps`` is text, such as ``"0.5,36/255"``; radii are exact.

    Raises:
        ConfigError: a value that a setting cannot have.
    """

    eps: str
    bound: str = "sdp-crown"
    certificate: str = "auto"
    delta: float = 1e-6
    radius_steps: int = 2
    image_box: bool = False
    pgd_steps: int = 100
    seed: int = 0
    inference: str | None = None

    def __post_init__(self) -> None:
        parse_epsilons(self.eps)
        check_delta(self.delta)
        object.__setattr__(self, "bound", current_name(self.bound, "certify"))
        for name in ("radius_steps", "pgd_steps"):
            NOT_NEGATIVE.check(name, getattr(self, name))
        shared_settings(self.certificate, self.inference)


def certify_shard(
    model: nn.Module,
    data: ImageSource,
    settings: CertifySettings,
    folder: Path,
    identity: str,
    *,
    batch_size: int = 10,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Certifies this process's share of the samples that ``folder`` holds no row of yet.

    Samples are taken in chunks of ``batch_size``, the same ones whatever is there already and however many processes
    there are, so that a run which was stopped, or divided, ends with the rows of one that was not. More samples, and
    more radii, may be asked for later: what is known is kept, and δ is divided so that no sample's grows beyond it.

    Args:
        model: in eval mode; a copy of it is used in float64 on its own device.
        identity: of the model and the classes (a digest); rows of another are refused.
        progress: called with the number of samples done, after every chunk.

    Raises:
        CheckpointError: the folder holds rows of another model, other settings, versions or samples, or is full.
    """
    COUNT.check("batch_size", batch_size)
    seed = claim(folder, asdict(settings), identity, rank)
    known = {row.index: row for row in read_rows(folder)}
    work = _Work(model, settings, folder, f"rows-{rank}-of-{processes}", seed)
    for indices in share_of(len(data), batch_size, rank, processes):
        images, labels = data.batch(indices)
        digests = [digest_of(image, label) for image, label in zip(images, labels.tolist(), strict=True)]
        here = [known[i] for i in indices.tolist() if i in known]
        check_samples(here, indices[0].item(), digests, folder)
        if len(here) < len(indices):
            work.certify(indices, images, labels, digests, skip=set(known))
        short = [row for row in here if not set(work.eps.values()) <= set(row.eps)]
        if short:
            places = [row.index - int(indices[0]) for row in short]
            work.extend(short, images[places], labels[places])
        if len(here) < len(indices) or short:
            progress(len(indices) - len(here) + len(short))


def share_of(count: int, batch_size: int, rank: int = 0, processes: int = 1) -> list[Tensor]:
    """Indices of the chunks that are this process's: all draw from the same chunks, in turn."""
    chunks = torch.arange(count).split(batch_size) if count else ()
    return list(chunks[rank::processes])


class _Work:
    """The network in both precisions, its certifiers, and where rows go."""

    def __init__(self, model: nn.Module, settings: CertifySettings, folder: Path, stem: str, seed: int) -> None:
        self.settings, self.folder, self.stem, self.seed = settings, folder, stem, seed
        self.eps = parse_epsilons(settings.eps)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.single, self.model = copy.deepcopy(model).float(), copy.deepcopy(model).double()
        self._certifiers: dict[tuple[float, int, int], Certifier] = {}
        self._halving = Halving()

    def certify(self, indices: Tensor, images: Tensor, labels: Tensor, digests: list[str], skip: set[int]) -> None:
        """Certifies a whole chunk, so that its rows are the same ones always, and adds those that are missing."""
        images, labels = images.to(self.device), labels.to(self.device)
        wide = images.double()
        with torch.no_grad():
            top = self.model(wide).topk(2, dim=1)
        predictions, margins = top.indices[:, 0], top.values[:, 0] - top.values[:, 1]
        survived = self._attacked(images, labels, indices.tolist(), self.eps)
        refuted = self._refuted(predictions == labels, survived)
        # half of δ now, so that something is left for radii that are asked for later
        half, radii = self.settings.delta / 2, list(self.eps.values())
        verdict = self._verdict(int(indices[0]), wide, predictions, radii, half, refuted=refuted)
        rows = [
            Row(
                *(index, label, prediction, margin, radius, *verdict.worth),
                {name: s[place] for name, s in survived.items()},
                *(failed, digests[place], tuple(self.eps.values())),
            )
            for place, (index, label, prediction, margin, radius, failed) in enumerate(
                zip(*(t.tolist() for t in (indices, labels, predictions, margins, verdict.radius, verdict.failed)))
            )
        ]
        append_rows(self.folder, self.stem, [row for row in rows if row.index not in skip], list(self.eps))

    def extend(self, rows: list[Row], images: Tensor, labels: Tensor) -> None:
        """Adds radii to rows: only those are tried that the rows do not decide, with half of the δ that is left."""
        images, labels = images.to(self.device), labels.to(self.device)
        new = {name: value for name, value in self.eps.items() if any(value not in row.eps for row in rows)}
        right = torch.tensor([row.prediction == row.label for row in rows], device=self.device)
        survived = self._attacked(images, labels, [row.index for row in rows], new)
        refuted = self._refuted(right, survived)
        undecided = sorted(
            value
            for value in set(new.values())
            if any(not row.decided(value) and rounded_up(value) < bad for row, bad in zip(rows, refuted.tolist()))
        )
        verdict = None
        if undecided:
            predictions = torch.tensor([row.prediction for row in rows], device=self.device)
            share = (self.settings.delta - max(row.delta for row in rows)) / 2
            verdict = self._verdict(rows[0].index, images.double(), predictions, undecided, share, refuted, steps=0)
        longer = []
        for place, row in enumerate(rows):
            before = {value: row.pgd[name] for name in row.pgd for value in parse_epsilons(name).values()}
            now = {self.eps[name]: s[place] for name, s in survived.items()}
            pgd = {name: {**now, **before}[value] for name, value in self.eps.items() if survived or before}
            longer.append(replace(_joined(row, verdict, place), pgd=pgd, eps=tuple(self.eps.values())))
        append_rows(self.folder, self.stem, longer, list(self.eps))

    def _refuted(self, right: Tensor, survived: dict[str, list[bool]]) -> Tensor:
        """The least radius at which each sample is known to be wrong; inf, and −inf if it is so unmoved. With a search
        the radius of every prediction is wanted, right or wrong."""
        radius = torch.full(right.shape, torch.inf, dtype=torch.float64, device=self.device)
        if self.settings.radius_steps:
            return radius
        for name, kept in survived.items():
            fell = ~torch.tensor(kept, device=self.device)
            radius = torch.where(fell, radius.clamp(max=rounded_up(self.eps[name])), radius)
        return torch.where(right, radius, -torch.inf)

    def _verdict(
        self,
        first: int,
        x: Tensor,
        predictions: Tensor,
        eps: list[Fraction],
        delta: float,
        refuted: Tensor,
        *,
        steps: int | None = None,
    ) -> Verdict:
        """Its chance depends on the first index alone, of the chunk or of what memory suffices for."""
        s = self.settings
        key = (delta, s.radius_steps if steps is None else steps, len(eps))
        if key not in self._certifiers:
            box = (0.0, 1.0) if s.image_box else None
            with seeds_of(derived_seed("certifier", self.seed, *map(str, key))):  # of norms that all samples share
                options: dict[str, Any] = {"radius_steps": key[1], "image_box": box, "inference": s.inference}
                self._certifiers[key] = make_certifier(s.bound, self.model, x[:1], s.certificate, delta, **options)
                self._certifiers[key].prepare(len(eps))

        def part(place: int, x: Tensor, predictions: Tensor, refuted: Tensor) -> Verdict:
            with seeds_of(derived_seed("certify", self.seed, first + place, *map(str, key))):
                return self._certifiers[key](x, predictions, sorted(eps), refuted)

        return Verdict.of_parts(self._halving(part, x, predictions, refuted))

    def _attacked(
        self, images: Tensor, labels: Tensor, indices: list[int], eps: dict[str, Fraction]
    ) -> dict[str, list[bool]]:
        s = self.settings
        seeds = [derived_seed("pgd", s.seed, index) for index in indices]
        if not s.pgd_steps:
            return {}
        return {
            name: survives_pgd(self.single, images, labels, rounded_up(value), s.pgd_steps, seed=seeds).tolist()
            for name, value in eps.items()
        }


def _joined(row: Row, verdict: Verdict | None, place: int) -> Row:
    """What is known of a sample from before and now; the chances of failure add up."""
    if verdict is None:
        return row
    radius = max(row.radius, verdict.radius[place].item())
    tried = [value for value in (row.failed, verdict.failed[place].item()) if value > radius]
    kind, delta = row.worth.both(verdict.worth)
    return replace(row, radius=radius, failed=min(tried, default=float("inf")), certificate=kind, delta=delta)


def summarise(rows: Iterable[Row], settings: CertifySettings) -> dict[str, Any]:
    """Clean accuracy and, per ε, PGD and certified accuracy (fractions of 1), with the certificate they rest on."""
    rows = list(rows)
    if not rows:
        raise ConfigError("there are no certified samples to summarise.")
    count = len(rows)
    table = [
        {
            "eps": name,
            "pgd": sum(r.survived(value) for r in rows) / count if settings.pgd_steps else None,
            "certified": sum(r.certified(value) for r in rows) / count,
        }
        for name, value in parse_epsilons(settings.eps).items()
    ]
    worth = weakest(row.worth for row in rows)
    return {
        "samples": count,
        "clean": sum(r.prediction == r.label for r in rows) / count,
        "certificate": worth.kind,
        "delta_per_sample": worth.delta,
        "table": table,
        "settings": asdict(settings),
    }


def write_merged(folder: Path, settings: CertifySettings, count: int | None = None) -> dict[str, Any]:
    """``certificates.csv`` of all samples in order, and ``summary.json``, which is returned too.

    Args:
        count: of samples, the first ones; None for all that the folder holds.

    Raises:
        CheckpointError: one of them is missing, or the files cannot be written.
    """
    rows, eps = read_rows(folder), parse_epsilons(settings.eps)
    rows = rows if count is None else [row for row in rows if row.index < count]
    if count is not None and len(rows) < count:
        raise CheckpointError(
            f"{folder} holds {len(rows)} of {count} samples: a process was lost. Start the same command again; it "
            "certifies what is missing."
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = [*FIELDS, *(f"certified@{n}" for n in eps), *(f"pgd@{n}" for n in eps if settings.pgd_steps)]
    writer.writerow(names)
    for row in rows:
        certified = [int(row.certified(value)) for value in eps.values()]
        pgd = [int(row.survived(value)) for value in eps.values()] if settings.pgd_steps else []
        writer.writerow([*values(row), *certified, *pgd])
    summary = summarise(rows, settings)
    write_whole(folder / "certificates.csv", text.getvalue())
    write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    return summary
