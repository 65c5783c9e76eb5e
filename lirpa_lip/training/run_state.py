"""What a checkpoint holds of a training run, and how it is put back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.errors import CheckpointError, DataError
from lirpa_lip.methods import name_before
from lirpa_lip.ranges import FINITE, NOT_NEGATIVE
from lirpa_lip.training.checkpoint import Checkpoint
from lirpa_lip.training.config import TrainConfig, config_from
from lirpa_lip.training.data import SHIPPED, DataBundle, load_data, unread_folder
from lirpa_lip.training.ema import WeightAverage
from lirpa_lip.training.models import build_model, check_classifier, load_weights, refuse_code_of_a_file
from lirpa_lip.training.objective import Objective
from lirpa_lip.training.processes import process_count

_FREE_TO_CHANGE = {"out", "data_dir", "epochs", "checkpoint_every", "log_every", "clip_grad", "lr", "end_lr", "lr_hold"}
"""Settings that may differ between a checkpoint and the run that resumes it: they change what comes, not what was."""


@dataclass
class RunState:
    """Progress: updates made so far, and the best validation result."""

    step: int = 0
    best: float = -1.0


def snapshot(
    state: RunState,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    config: TrainConfig,
    *,
    data: DataBundle,
) -> Checkpoint:
    """Everything a run needs to go on. Random states are not among it: draws are functions of the step."""
    model = objective.model
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {name: tensor for name, tensor in objective.named_buffers() if name.startswith("bound.")}
    for index, parameter in enumerate(model.parameters()):
        tensors |= {f"optimizer.{index}.{k}": v for k, v in optimizer.state.get(parameter, {}).items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.weights.items()}
    described: dict[str, Any] = {
        "step": state.step,
        "best": state.best,
        "average_steps": 0 if average is None else average.steps,
        "processes": process_count(),
        "config": config.to_dict(),
        "data": {
            **{"shape": list(data.shape), "classes": data.classes, "mean": data.mean, "std": data.std},
            "class_names": None if data.class_names is None else list(data.class_names),
        },
    }
    return Checkpoint({name: t.detach().clone() for name, t in tensors.items()}, described)


def restore(
    checkpoint: Checkpoint,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    config: TrainConfig,
) -> RunState:
    """Puts a checkpoint back into a run of the same configuration.

    Raises:
        CheckpointError: a setting that shaped the past differs, or the tensors do not fit.
    """
    saved = config_of(checkpoint).to_dict()
    differing = [n for n, v in config.to_dict().items() if n not in _FREE_TO_CHANGE and saved[n] != v]
    if differing:
        listed = ", ".join(f"{name} was {saved[name]!r}, is {getattr(config, name)!r}" for name in differing)
        raise CheckpointError(f"the checkpoint belongs to another configuration: {listed}.")
    try:
        load_weights(objective.model, checkpoint.group("model"), "the checkpoint")
        buffers = dict(objective.named_buffers())
        for name, tensor in checkpoint.group("bound").items():
            if f"bound.{name}" in buffers:  # an earlier version kept other start vectors; these are found again
                buffers[f"bound.{name}"].copy_(tensor)
        for index, parameter in enumerate(objective.model.parameters()):
            optimizer.state[parameter] = _optimizer_state(checkpoint.group(f"optimizer.{index}"), parameter)
        if average is not None:
            average.steps = int(checkpoint.state["average_steps"])
            average.weights = {name: t.to(p.device) for name, t, p in _matched(checkpoint, objective)}
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint does not fit this network ({error}).") from error
    try:
        state = RunState(int(checkpoint.state["step"]), float(checkpoint.state.get("best", RunState.best)))
        if not (NOT_NEGATIVE.holds(state.step) and FINITE.holds(state.best)):
            raise ValueError(f"step {checkpoint.state['step']!r}, best {state.best!r}")
        return state
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint does not say at which step it was taken ({error!r}).") from error


def config_of(checkpoint: Checkpoint) -> TrainConfig:
    """The settings of the run; such as this version does not know are named and left out, missing ones are defaults.

    Raises:
        CheckpointError: it holds no settings.
        ConfigError: a setting has a value it cannot have.
    """
    saved = checkpoint.state.get("config")
    if not isinstance(saved, dict):
        raise CheckpointError("the checkpoint holds no settings of a run.")
    known = {item.name for item in fields(TrainConfig)}
    unknown = sorted(set(saved) - known)
    if unknown:
        warnings.warn(
            f"the checkpoint has settings which this version does not know, and leaves out: {', '.join(unknown)}.",
            stacklevel=2,
        )
    values = {name: value for name, value in saved.items() if name in known}
    if checkpoint.format == 1 and "bound" in values:
        values["bound"] = name_before(values["bound"], "train")
    return config_from(values, "the checkpoint")


def data_of(checkpoint: Checkpoint, data_dir: str | None = None, dataset: str | None = None) -> DataBundle:
    """The data a run was trained on, or other data of the same classes.

    Args:
        data_dir, dataset: where they differ from the run's own.

    Raises:
        DataError: its classes, or the images' shape, are not those that the network was trained on.
    """
    config = config_of(checkpoint)
    if data_dir is not None and (dataset or config.dataset) in SHIPPED:
        warnings.warn(unread_folder(dataset or config.dataset, data_dir), stacklevel=2)
    found = load_data(
        dataset or config.dataset, data_dir or config.data_dir, config.validation, config.seed, config.image_size
    )
    check_data(checkpoint, found)
    return found


def check_data(checkpoint: Checkpoint, found: DataBundle) -> None:
    """
    Raises:
        DataError: the classes, or the images' shape, are not those that the network was trained on.
    """
    trained = _described(checkpoint)
    if list(found.shape) != list(trained["shape"]):
        raise DataError(f"the network takes images of shape {tuple(trained['shape'])}; these are {found.shape}.")
    names, count = trained["class_names"], trained["classes"]
    if names is not None and found.class_names is not None:
        check_class_names(names, found.class_names)
    if found.classes != count:
        raise DataError(f"the network was trained on {count} classes; the data has {found.classes}.")


def check_class_names(trained: Sequence[str], here: Sequence[str]) -> None:
    """
    Raises:
        DataError: labels of the data do not stand for what they stood for in training.
    """
    if list(trained) == list(here) or not here:
        return
    missing, more = ([n for n in a if n not in b] for a, b in ((trained, here), (here, trained)))
    parts = (
        f"missing: {', '.join(missing)}" if missing else "",
        f"unknown to it: {', '.join(more)}" if more else "",
    )
    what = "; ".join(part for part in parts if part) or "they stand in another order"
    raise DataError(
        f"the data's {len(here)} classes are not the {len(trained)} that the network was trained on ({what}), so that "
        "labels would mean different things."
    )


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the checkpoint says of its data.

    Raises:
        CheckpointError: the shape or the number of classes is not there.
    """
    found = checkpoint.state.get("data")
    data: dict[str, Any] = found if isinstance(found, dict) else {}
    missing = [n for n in ("shape", "classes") if n not in data]
    if missing:
        raise CheckpointError(f"the checkpoint does not say for which data its network is: no {', '.join(missing)}.")
    data = {"mean": None, "std": None, "class_names": None, **data}
    for name, is_right in _KINDS.items():
        if not is_right(data[name]):
            raise CheckpointError(f"the checkpoint says of its data that {name} is {data[name]!r}, which cannot be.")
    return data


def _list_of(kinds: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kinds) and not isinstance(item, bool) for item in value)


#: What a checkpoint says of its data -> whether it can be.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "shape": lambda v: _list_of(int, v) and len(v) == 3 and min(v) > 0,
    "classes": lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0,
    "mean": lambda v: v is None or _list_of((int, float), v),
    "std": lambda v: v is None or _list_of((int, float), v),
    "class_names": lambda v: v is None or _list_of(str, v),
}


def model_from(checkpoint: Checkpoint, arch: str | None = None, trust_arch: bool = False) -> torch.nn.Module:
    """The trained network, in eval mode: the weights' moving average where the run kept one.

    Args:
        arch: the network, in place of the one the checkpoint names.
        trust_arch: import the module that the checkpoint names, where it does: that runs whatever code it holds.

    Raises:
        CheckpointError: the tensors do not fit the network, or the checkpoint names code that is not trusted.
    """
    config, data = config_of(checkpoint), _described(checkpoint)
    if arch is not None:
        config = replace(config, arch=arch)
    elif not trust_arch:
        refuse_code_of_a_file(config.arch, "the checkpoint")
    mean, std = (data["mean"], data["std"]) if config.normalize else (None, None)
    shape: tuple[int, int, int] = tuple(data["shape"])  # type: ignore[assignment]
    model = build_model(
        config.arch, shape, data["classes"], config.activation, mean, std=std, threshold=config.threshold
    )
    load_weights(model, checkpoint.weights, "the checkpoint")
    if ":" in config.arch:
        check_classifier(model, shape, data["classes"], config.arch)
    return model.eval()


def _optimizer_state(saved: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """Adam keeps its step count on the CPU and its moments beside the parameter."""
    return {key: value if key == "step" else value.to(parameter.device) for key, value in saved.items()}


def _matched(checkpoint: Checkpoint, objective: Objective) -> list[tuple[str, Tensor, Tensor]]:
    saved = checkpoint.group("average")
    return [(name, saved[name], parameter) for name, parameter in objective.model.named_parameters()]
