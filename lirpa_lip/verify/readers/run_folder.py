"""The network of a run of ``lirpa-lip train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
from lirpa_lip.training.run_state import model_from
from lirpa_lip.verify.network import Network, network_of


def read_run(path: Path, arch: str | None, trust_arch: bool) -> Network:
    """The trained network of a run's folder, or of one of its checkpoints.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UntrustedCodeError: it names code that is not trusted.
    """
    found = find_checkpoint(path)
    loaded = load_checkpoint(found)
    model = model_from(loaded, arch, trust_arch)
    network = network_of(model, loaded.state["data"]["shape"], name=f"{path} ({found.name})")
    names = loaded.state["data"].get("class_names")
    return replace(network, class_names=None if names is None else tuple(names))
