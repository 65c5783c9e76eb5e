"""States of branch and bound on disk: tensors as safetensors, everything else as JSON, so that reading runs no code.

Domains are many and their tensors small: each kind of tensor is written once, all domains' beside each other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lirpa_lip.errors import CheckpointError
from lirpa_lip.search.branch_and_bound import State
from lirpa_lip.search.domains import Domain

FORMAT = "1"
_REST = "rest"  # name of the tensor whose bytes are the JSON text: a header may not grow as large
Key = tuple[Any, ...]


def save_states(path: Path, states: Mapping[Key, State]) -> None:
    """Writes states under their keys, tuples of JSON values; the file is complete or as it was before."""
    tensors: dict[str, Tensor] = {}
    records = []
    for number, (key, state) in enumerate(states.items()):
        columns: dict[str, list[tuple[int, Tensor]]] = {}
        for index, domain in enumerate(state.waiting):
            for name, tensor in _tensors_of(domain).items():
                columns.setdefault(name, []).append((index, tensor))
        owners = {name: [index for index, _ in column] for name, column in columns.items()}
        tensors |= {
            f"{number}/{name}": torch.cat([t.detach().cpu() for _, t in column]) for name, column in columns.items()
        }
        domains = [_rest_of(d) for d in state.waiting]
        plain = {name: value for name, value in vars(state).items() if name != "waiting"}
        records.append({"key": list(key), "state": plain, "domains": domains, "owners": owners})
    text = json.dumps(records).encode()
    tensors[_REST] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    scratch = path.with_name(path.name + ".writing")
    scratch.write_bytes(save(tensors, {"format": FORMAT, "sha256": _digest(tensors)}))
    os.replace(scratch, path)


def load_states(path: Path) -> dict[Key, State]:
    """What `save_states` wrote.

    Raises:
        CheckpointError: the file is no such file, is damaged, or has another format.
    """
    try:
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} holds no states of branch and bound ({error}).") from error
    if about.get("format") != FORMAT or _REST not in tensors:
        raise CheckpointError(f"{path} has format {about.get('format')} of such states; this version reads {FORMAT}.")
    if about.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path} is damaged: its content does not match its SHA-256. Delete it to start again.")
    records = json.loads(bytes(tensors[_REST].numpy()))
    return {tuple(r["key"]): _state(r, {n: t for n, t in tensors.items() if n.startswith(f"{k}/")}, f"{k}/")
            for k, r in enumerate(records)}  # fmt: skip


def _tensors_of(domain: Domain) -> dict[str, Tensor]:
    found = {"low": domain.low, "high": domain.high}
    for kind in ("intervals", "cotangents"):
        for node, pair in getattr(domain, kind).items():
            found |= {f"{kind}/{end}/{node}": tensor for end, tensor in enumerate(pair)}
    return found


def _rest_of(domain: Domain) -> dict[str, Any]:
    return {name: getattr(domain, name) for name in ("problem", "upper", "splits", "choices", "bytes")}


def _state(record: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> State:
    parts: list[dict[str, Tensor]] = [{} for _ in record["domains"]]
    for name, owners in record["owners"].items():
        for index, tensor in zip(owners, tensors[prefix + name].split(1), strict=True):
            parts[index][name] = tensor.clone()  # a view would keep the tensors of all domains
    waiting = []
    for rest, found in zip(record["domains"], parts, strict=True):
        pairs: dict[str, dict[str, Any]] = {"intervals": {}, "cotangents": {}}
        for name in [n for n in found if n.startswith(("intervals/0/", "cotangents/0/"))]:
            kind, _, node = name.split("/", 2)
            pairs[kind][node] = (found[name], found[f"{kind}/1/{node}"])
        tuples = {key: tuple(tuple(item) for item in rest[key]) for key in ("splits", "choices")}
        waiting.append(Domain(**{**rest, **tuples, **pairs}, low=found["low"], high=found["high"]))
    return State(waiting=waiting, **record["state"])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
