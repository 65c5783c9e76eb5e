"""What the rows in a folder belong to: a network, its classes, settings, versions, and every sample."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lirpa_lip.errors import CheckpointError
from lirpa_lip.norms.draw import fresh_seed
from lirpa_lip.training.epsilon import parse_epsilons
from lirpa_lip.training.rows import Row, explained, write_first, write_whole
from lirpa_lip.training.versions import versions


def identity_of(model: nn.Module, description: str) -> str:
    """A digest of the network, its layers and its weights, and of a description of what its labels mean."""
    digest = hashlib.sha256(f"{description}\n{model}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_of(image: Tensor, label: int) -> str:
    content = f"{label} {tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:32]


def check_samples(rows: list[Row], first: Any, digests: list[str], folder: Path) -> None:
    for row in rows:
        if row.sample != digests[row.index - first]:
            raise CheckpointError(
                f"{folder} holds certificates of other data: sample {row.index} is another image now, or has another "
                "label; choose another --out."
            )


def claim(folder: Path, settings: dict[str, Any], identity: str, rank: int) -> int:
    """Writes what the folder's rows belong to, or checks that it is the same, or has fewer radii.

    Returns:
        The seed of the norms' random starts. It is drawn from the system's entropy when the folder is first used, so
        that neither network nor data can have been made for it, and kept, so that a run ends as it would have.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / "certify.json"
    mine = {"identity": identity, "settings": settings, "versions": versions()}
    first = json.dumps({**mine, "seed": fresh_seed()}, indent=1)
    write_first(path, first)  # of several processes the first one decides
    seed = _check_claim(path, mine, folder)
    if rank == 0:
        write_whole(path, json.dumps({**mine, "seed": seed}, indent=1))
    return seed


def _check_claim(path: Path, mine: dict[str, Any], folder: Path) -> int:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        before = parse_epsilons(there["settings"]["eps"])
        differing = [
            f"{name} was {there[part].get(name)!r}, is {value!r}"
            for part in ("settings", "versions")
            for name, value in mine[part].items()
            if name != "eps" and there.get(part, {}).get(name) != value
        ]
        seed = int(there.get("seed", -1))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); choose another --out.") from error
    if there.get("identity") != mine["identity"]:
        raise CheckpointError(
            f"{folder} holds certificates of another model, or of other classes; choose another --out."
        )
    if differing:
        raise CheckpointError(
            f"{folder} holds certificates of other settings ({', '.join(differing)}); choose another --out."
        )
    now = parse_epsilons(mine["settings"]["eps"])
    if not set(before.values()) <= set(now.values()):
        raise CheckpointError(
            f"{folder} holds certificates of other settings: radii {', '.join(before)}. Radii can be added to them: "
            f"--eps {','.join([*before, *(n for n, v in now.items() if v not in before.values())])}; or choose another "
            "--out."
        )
    if seed < 0:
        raise CheckpointError(f"{path} holds no seed; choose another --out.")
    return seed
