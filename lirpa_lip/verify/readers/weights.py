"""Weights in .safetensors or .pth files, for a network that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lirpa_lip.errors import ConfigError, DataError, ShapeError
from lirpa_lip.training.models import build_model, load_weights
from lirpa_lip.verify.network import Network, network_of


def read_weights(path: Path, arch: str | None, shape: Sequence[int] | None, classes: int | None) -> Network:
    """The network ``arch`` with the weights of a file.

    Args:
        arch: ``package.module:factory``, which the user names and which is imported, or a named architecture.
        shape: of one input.
        classes: how many outputs; read off the last tensor with a row for each where it is None.

    Raises:
        ConfigError: no ``arch``, or no input shape.
        DataError: the file is damaged, or holds more than tensors.
        CheckpointError: the weights are not those of the network.
    """
    if arch is None:
        raise ConfigError(f"{path} holds weights alone: name the network too, --arch package.module:factory.")
    if shape is None:
        raise ConfigError("a network from weights needs the shape of its input, as in --input-shape 1,28,28.")
    tensors = load_tensors(path)
    count = classes or _rows_of_the_last(tensors, path)
    size = (*shape, 1, 1)[:3] if len(shape) < 3 else tuple(shape)
    model = build_model(arch, tuple(shape) if ":" in arch else size, count)  # type: ignore[arg-type]
    load_weights(model, tensors, str(path))
    network = network_of(model.eval(), shape, name=path.name)
    if classes is not None and network.outputs != classes:
        raise ShapeError(f"{arch} has {network.outputs} outputs; {classes} were asked for.")
    return network


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file; no code of its is run.

    Raises:
        DataError: it is absent or damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load(path.read_bytes()))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":  # of a module that nothing here imports
            raise DataError(
                f"{path} holds more than tensors, which could run code and is not read; save model.state_dict() alone, "
                "best as .safetensors."
            ) from error
        raise DataError(f"{path} is damaged, or no file of weights ({type(error).__name__}: {error}).") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise DataError(f"{path} holds no dictionary of tensors; save model.state_dict().")
    return {str(key).removeprefix("module."): value for key, value in found.items()}


def _rows_of_the_last(tensors: dict[str, Tensor], path: Path) -> int:
    shaped = [t for t in tensors.values() if t.ndim >= 1]
    if not shaped:
        raise DataError(f"{path} holds no weights.")
    return len(shaped[-1])
