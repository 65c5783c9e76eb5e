"""Atomic checkpoints: tensors as safetensors, everything else as JSON, each complete or not there at all.

A checkpoint is a folder ``<kind>-<step>`` with ``tensors.safetensors`` and ``state.json``, which holds a SHA-256 of
both. It is written under another name, flushed to disk and renamed, so a process killed at any moment leaves the
previous checkpoint intact.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lirpa_lip.errors import CheckpointError
from lirpa_lip.training.rows import cause_of

FORMAT = 2
"""Of what is written. Format 1, which is still read, had other names of bounds and no class names."""
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on, or a network to be used: named tensors and a JSON-serialisable state."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    format: int = FORMAT

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with ``prefix.``, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + ".")}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The network's tensors: the weights' moving average where the run kept one."""
        return {**self.group("model"), **self.group("average")}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, step: int, kind: str = "step", keep: int = 2) -> Path:
    """Writes ``folder/<kind>-<step>`` atomically, then removes all but the newest ``keep`` of that kind.

    Raises:
        CheckpointError: it could not be written (disk full, no permission); what was there before is still there.
    """
    name = f"{kind}-{step:08d}"
    target, scratch = folder / name, folder / f".{name}.writing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()})
        record = {"format": FORMAT, "sha256": _digest(content, checkpoint.state), "state": checkpoint.state}
        _write(scratch / _TENSORS, content)
        _write(scratch / _STATE, json.dumps(record, indent=1).encode())
        _swap(scratch, target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {target} could not be written: {cause_of(error)}. Earlier checkpoints in {folder} are intact; "
            f"make room and resume: lirpa-lip train --resume --out {folder.parent}"
        ) from error
    for old in checkpoints_in(folder, kind)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads and verifies a checkpoint folder.

    Raises:
        CheckpointError: absent, truncated, changed since it was written, or of another format.
    """
    path = Path(path)
    if not (path / _STATE).is_file() or not (path / _TENSORS).is_file():
        raise CheckpointError(f"{path} is no checkpoint: it needs {_STATE} and {_TENSORS}.")
    try:
        record = json.loads((path / _STATE).read_text())
        found, expected, state = record["format"], record["sha256"], record["state"]
        content = (path / _TENSORS).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(_damaged(path, f"{_STATE}: {error!r}")) from error
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {found}, which a newer lirpa_lip wrote; this version reads up to {FORMAT}."
        )
    if _digest(content, state) != expected:
        raise CheckpointError(_damaged(path, "its content does not match its SHA-256"))
    if not isinstance(state, dict):
        raise CheckpointError(_damaged(path, f"{_STATE} holds no state of a run"))
    try:
        return Checkpoint(safetensors.torch.load(content), state, found)
    except safetensors.SafetensorError as error:
        raise CheckpointError(_damaged(path, f"{_TENSORS}: {error}")) from error


def checkpoints_in(folder: Path, kind: str = "step") -> list[Path]:
    """The complete ``<kind>-<step>`` checkpoints in a folder, oldest first."""
    named = (p for p in folder.glob(f"{kind}-*") if p.name.removeprefix(f"{kind}-").isdecimal())
    return sorted(p for p in named if (p / _STATE).is_file())


def set_aside_after(folder: Path, step: int) -> None:
    """Renames the checkpoints of later steps: a run that goes on from ``step`` will not come to them again."""
    for kind in ("step", "best"):
        for path in checkpoints_in(folder, kind):
            if int(path.name.rsplit("-", 1)[1]) > step:
                aside = path.with_name(f"aside-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)


def find_checkpoint(path: str | Path) -> Path:
    """Resolves a checkpoint, a run's folder or the folder of its checkpoints: the best one if there is one, else the
    newest.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if (path / _STATE).is_file():
        return path
    folders = (path / "checkpoints", path)
    found = next((f for d in folders for f in (checkpoints_in(d, "best"), checkpoints_in(d)) if f), None)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint; give a run folder (--out of train) or a checkpoint in it.")
    return found[-1]


def _digest(content: bytes, state: dict[str, Any]) -> str:
    return hashlib.sha256(content + json.dumps(state, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, cause: str) -> str:
    others = [p.name for p in checkpoints_in(path.parent) if p != path]
    remedy = "there is no other one: start again"
    if others:
        other = path.parent / others[-1]
        remedy = f"use another one: lirpa-lip train --resume {other}, or lirpa-lip certify {other}"
    return f"checkpoint {path} is damaged ({cause}); {remedy}."


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _swap(scratch: Path, target: Path) -> None:
    """Puts ``scratch`` in place of ``target``; a folder cannot be replaced in one step, so the old one moves aside."""
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.rename(target, aside)
    os.rename(scratch, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(aside, ignore_errors=True)
