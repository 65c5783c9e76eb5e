"""Verifies a whole data set: spread over processes, resumable, one line per instance, and a summary."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lirpa_lip.errors import CheckpointError, DataError
from lirpa_lip.norms.draw import seeds_of
from lirpa_lip.training.rows import write_whole
from lirpa_lip.training.run_state import check_class_names
from lirpa_lip.training.sampling import derived_seed
from lirpa_lip.training.versions import versions
from lirpa_lip.verify import rows
from lirpa_lip.verify.cascade import decide_property
from lirpa_lip.verify.data import Samples
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.network import Network
from lirpa_lip.verify.properties import Property
from lirpa_lip.verify.question import Question
from lirpa_lip.verify.radius import search_radius
from lirpa_lip.verify.records import Verdict
from lirpa_lip.verify.rows import Entry
from lirpa_lip.verify.settings import VerifySettings

_NOTHING = Verdict("open", "unknown", -math.inf, math.inf)
#: Columns of ``verdicts.csv``.
FIELDS = (
    *("index", "label", "prediction", "status", "word", "lower", "upper", "gap", "certificate", "delta", "decided_by"),
    *("seconds", "radius", "radius_failed"),
)


def identity(network: Network, question: Question, settings: VerifySettings) -> dict[str, Any]:
    """What a folder's verdicts belong to."""
    return {
        "network": network.identity,
        "question": json.loads(json.dumps(asdict(question))),
        "settings": {**asdict(settings), "time_limit": str(settings.time_limit)},
        "versions": versions(),
    }


def check_labels(network: Network, samples: Samples) -> None:
    """Before the first of them is worked on.

    Raises:
        DataError: a label is no class of the network, or stands for another class than in training.
    """
    if network.class_names is not None and samples.class_names is not None:
        check_class_names(network.class_names, samples.class_names)
    if samples.labels is None:
        return
    wrong = ((samples.labels < 0) | (samples.labels >= network.outputs)).nonzero().flatten()
    if len(wrong):
        raise DataError(
            f"label {int(samples.labels[wrong[0]])} of input {int(wrong[0])} is none of the network's "
            f"{network.outputs} classes, counted from 0."
        )


def verify_shard(
    network: Network,
    samples: Samples,
    question: Question,
    settings: VerifySettings,
    folder: Path,
    *,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[Entry], None] = lambda entry: None,
) -> None:
    """Verifies this process's share of the samples that ``folder`` holds no verdict of yet.

    Raises:
        CheckpointError: the folder holds verdicts of something else, or of other samples, or is full.
    """
    seed = rows.claim(folder, identity(network, question, settings))
    known = rows.read_entries(folder)
    for index in range(rank, len(samples), processes):
        label = None if samples.labels is None else int(samples.labels[index])
        region = question.region(network, samples, index)
        sample = _digest(region, label)
        if index in known:
            if known[index].sample != sample:
                raise CheckpointError(
                    f"{folder} holds verdicts of other data: sample {index} is another input now, or has another "
                    "label; choose another --out."
                )
            continue
        claim = question.claim(network, region, label, str(index))
        with seeds_of(derived_seed("verify", seed, index)):
            entry = _decided(network, claim, question, settings, Entry(index, sample, _NOTHING))
        rows.append(folder, f"verdicts-{rank}-of-{processes}", entry)
        progress(entry)


def _decided(network: Network, claim: Property, question: Question, settings: VerifySettings, entry: Entry) -> Entry:
    """The entry with its verdict, and with its radius where that is asked for."""
    if question.radius is None:
        return replace(entry, verdict=decide_property(network, claim, settings, entry.index))
    half = replace(settings, delta=settings.delta / 2)  # the search takes the other half
    verdict = decide_property(network, claim, half, entry.index)
    found = search_radius(network, claim, question, verdict, half, index=entry.index)
    verdict = replace(verdict, certificate=found.certificate, delta=found.delta)
    return replace(entry, verdict=verdict, radius=found.certified, radius_failed=found.refuted)


def _digest(region: InputRegion, label: int | None) -> str:
    digest = hashlib.sha256(f"{label} {region.radius} {tuple(region.centre.shape)}".encode())
    for tensor in (region.centre, region.low, region.high):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def cells(entry: Entry) -> list[Any]:
    """Of ``verdicts.csv``, in the order of `FIELDS`; None for what there is not."""
    v = entry.verdict
    numbers = [value if math.isfinite(value) else None for value in (v.lower, v.upper, v.gap)]
    radii = [None if math.isnan(value) else value for value in (entry.radius, entry.radius_failed)]
    head = [entry.index, v.label, v.prediction, v.status, v.word, *numbers]
    return [*head, v.certificate, v.delta, v.decided_by, round(v.total_seconds, 3), *radii]


def summarise(entries: Mapping[int, Entry]) -> dict[str, Any]:
    """Shares of verdicts, times, and what certificates are worth."""
    verdicts = [entry.verdict for entry in entries.values()]
    if not verdicts:
        raise DataError("there is no verdict to summarise.")
    count = len(verdicts)
    times = sorted(v.total_seconds for v in verdicts)
    stages = {name for v in verdicts for name in v.seconds}
    return {
        "instances": count,
        **{status: sum(v.status == status for v in verdicts) for status in ("certified", "refuted", "open")},
        "decided": sum(v.status != "open" for v in verdicts) / count,
        "seconds_median": statistics.median(times),
        "seconds_total": sum(times),
        "seconds_by_stage": {name: sum(v.seconds.get(name, 0.0) for v in verdicts) for name in sorted(stages)},
        "decided_by": {name: sum(v.decided_by == name for v in verdicts) for name in sorted(stages)},
        "certificate": "probabilistic" if any(v.certificate == "probabilistic" for v in verdicts) else "deterministic",
        "delta_per_instance": max(v.delta for v in verdicts),
    }


def write_results(folder: Path, count: int) -> dict[str, Any]:
    """``verdicts.csv``, ``summary.json`` and ``counterexamples.npz`` of the first ``count`` samples.

    Raises:
        CheckpointError: one of them is missing, or the files cannot be written.
    """
    entries = {index: entry for index, entry in rows.read_entries(folder).items() if index < count}
    if len(entries) < count:
        raise CheckpointError(
            f"{folder} holds {len(entries)} of {count} verdicts: a process was lost. Start the same command again; it "
            "verifies what is missing."
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(FIELDS)
    for entry in entries.values():
        writer.writerow(["" if cell is None else cell for cell in cells(entry)])
    summary = summarise(entries)
    write_whole(folder / "verdicts.csv", text.getvalue())
    write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    packed = io.BytesIO()
    np.savez_compressed(packed, **rows.counterexamples(list(entries.values())))  # type: ignore[arg-type]
    write_whole(folder / "counterexamples.npz", packed.getvalue())
    return summary


def fork_rng() -> Any:
    """Keeps the caller's random state."""
    return torch.random.fork_rng(devices=[])
