"""Verdicts on disk: one line of JSON per instance, complete or not counted, in a file per process.

A counterexample is part of its line, so that whoever kills the run at any moment loses nothing of what was decided.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lirpa_lip.errors import CheckpointError
from lirpa_lip.norms.draw import fresh_seed
from lirpa_lip.training.rows import explained, seal, write_first
from lirpa_lip.verify.records import Verdict


@dataclass(frozen=True)
class Entry:
    """An instance of a run.

    Attributes:
        index: its place in the data.
        sample: digest of the input, its region and what is asked of it.
        radius, radius_failed: largest certified radius, and the smallest one that the attack broke, where they were
            searched; NaN where not.
    """

    index: int
    sample: str
    verdict: Verdict
    radius: float = math.nan
    radius_failed: float = math.nan


def append(folder: Path, stem: str, entry: Entry) -> None:
    """Adds a line to ``folder/<stem>.jsonl``.

    Raises:
        CheckpointError: it cannot be written; lines that were are kept.
    """
    path = folder / f"{stem}.jsonl"
    with explained(folder):
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            cut = file.read(1) not in (b"", b"\n")  # the last line was cut short; it must not run into the next
            file.write((("\n" if cut else "") + json.dumps(_to_json(entry)) + "\n").encode())


def read_entries(folder: Path) -> dict[int, Entry]:
    """All complete lines of a run, by index, whatever number of processes wrote them; damaged ones do not count."""
    found: dict[int, Entry] = {}
    for path in sorted(folder.glob("verdicts-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = _from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):  # half a line, or one that the disk damaged
                continue
            found[entry.index] = entry
    return dict(sorted(found.items()))


def claim(folder: Path, mine: dict[str, Any]) -> int:
    """Writes what the folder's lines belong to, or checks that it is the same.

    Returns:
        The seed of the norms' random starts: from the system's entropy when the folder is first used, so that neither
        network nor data can have been made for it, and kept.

    Raises:
        CheckpointError: the folder holds verdicts of another network, property, setting or version.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / "verify.json"
    write_first(path, json.dumps({**mine, "seed": fresh_seed()}, indent=1))  # of several processes the first decides
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{name} was {there.get(name)!r}, is {value!r}" for name, value in mine.items() if there.get(name) != value
        ]
        seed = int(there.get("seed", -1))
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); choose another --out.") from error
    if differing:
        raise CheckpointError(
            f"{folder} holds verdicts of something else ({'; '.join(differing)}); choose another --out."
        )
    if seed < 0:
        raise CheckpointError(f"{path} holds no seed; choose another --out.")
    return seed


def _to_json(entry: Entry) -> dict[str, Any]:
    record = asdict(entry)
    for name in ("counterexample", "output"):
        record["verdict"][name] = _packed(getattr(entry.verdict, name))
    return {**record, "end": seal([json.dumps(record)])}


def _from_json(record: dict[str, Any]) -> Entry:
    end = record.pop("end")
    if end != "." and end != seal([json.dumps(record)]):  # "." ended the lines of earlier versions: no digest
        raise ValueError("a damaged line")
    verdict = dict(record.pop("verdict"))
    for name in ("counterexample", "output"):
        verdict[name] = _unpacked(verdict[name])
    return Entry(verdict=Verdict(**verdict), **record)


def _packed(tensor: Tensor | None) -> dict[str, Any] | None:
    if tensor is None:
        return None
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return {
        "type": str(array.dtype),
        "shape": list(array.shape),
        "bytes": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def _unpacked(record: dict[str, Any] | None) -> Tensor | None:
    if record is None:
        return None
    array = np.frombuffer(base64.b64decode(record["bytes"]), dtype=record["type"]).reshape(record["shape"])
    return torch.from_numpy(array.copy())


def counterexamples(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """``{"index", "x", "output"}`` of refuted instances, for ``counterexamples.npz``."""
    found = [(e.index, e.verdict.counterexample, e.verdict.output) for e in entries if e.verdict.status == "refuted"]
    kept = [(i, x, y) for i, x, y in found if x is not None and y is not None]
    return {
        "index": np.array([i for i, _, _ in kept], dtype=np.int64),
        "x": np.concatenate([x.numpy() for _, x, _ in kept]) if kept else np.zeros(0),
        "output": np.stack([y.numpy() for _, _, y in kept]) if kept else np.zeros(0),
    }
