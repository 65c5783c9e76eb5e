"""A run's network alone: what `certify` needs of a run, and nothing of its optimiser, its data's folder or its logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.errors import CheckpointError, UnknownMethodError
from lirpa_lip.precision import PRECISIONS
from lirpa_lip.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from lirpa_lip.training.config import TrainConfig
from lirpa_lip.training.run_state import config_of


def export_weights(run: str | Path, out: str | Path, precision: str = "float32") -> Path:
    """Writes a checkpoint of a run's weights alone into a new folder, which commands take like the run's own.

    Weights that are rounded are another network, whose certificates are its own: certify what was exported.

    Args:
        run: a run's folder or a checkpoint; of a folder the best one. Where the run kept a moving average of its
            weights, that is the network.
        out: a folder that is not there, or is empty.
        precision: that the weights are rounded to, ``"float32"`` or ``"bfloat16"``.

    Returns:
        The checkpoint that was written.

    Raises:
        UnknownMethodError: no such precision.
        CheckpointError: there is nothing to export, the weights do not fit into the precision, ``out`` holds
            something, or cannot be written.
    """
    if precision not in PRECISIONS:
        raise UnknownMethodError(precision, tuple(PRECISIONS), "precision")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there already; choose another folder.")
    source = load_checkpoint(find_checkpoint(run))
    config = config_of(source)
    weights = {f"model.{name}": _rounded(name, t, precision) for name, t in source.weights.items()}
    state: dict[str, Any] = {name: source.state[name] for name in ("step", "best", "data") if name in source.state}
    state["config"] = {**config.to_dict(), "data_dir": None, "start_from": None, "out": TrainConfig().out}
    return save_checkpoint(out / "checkpoints", Checkpoint(weights, state), int(state["step"]), kind="best")


def _rounded(name: str, tensor: Tensor, precision: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    found = tensor.to(PRECISIONS[precision])
    if not bool(torch.isfinite(found).all()):
        raise CheckpointError(f"{name} has values that {precision} does not hold, or that are no numbers.")
    return found
