"""Settings of a training run: one dataclass, from which the command line's flags and the YAML files are made."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lirpa_lip.errors import ConfigError, UnknownMethodError
from lirpa_lip.losses import BOUNDS, LOSSES
from lirpa_lip.training.data import DATASETS
from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.training.models import ACTIVATIONS, ARCHITECTURES
from lirpa_lip.training.sampling import AUGMENTATIONS

LOSS_NAMES = ("plain", *LOSSES)


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a run. ε stays text, so that 36/255 is exact."""

    dataset: str = _setting("digits", "Data set.", tuple(DATASETS))
    data_dir: str | None = _setting(None, "Folder of the data; downloads where it can if left out.")
    image_size: int | None = _setting(None, "Side to resize images to (image folders).")
    limit: int | None = _setting(None, "Use this many training (and test) images at most.")
    validation: float = _setting(0.1, "Fraction of the training images held out to choose the best checkpoint.")
    augment: str = _setting("none", "Augmentation.", AUGMENTATIONS)
    normalize: bool = _setting(False, "Normalise by the data set's mean and std inside the network.")

    arch: str = _setting("cnn-small", f"{', '.join(ARCHITECTURES)}, or package.module:factory for your own.")
    activation: str = _setting("clipped_relu", "Activation of the named architectures.", ACTIVATIONS)
    threshold: float | None = _setting(None, "Start of the clipping thresholds; the published one if left out.")

    loss: str = _setting("gloro", "Training loss.", LOSS_NAMES)
    bound: str = _setting("local-lip", "Lipschitz bound inside the loss.", tuple(BOUNDS))
    bound_iterations: int = _setting(2, "Lanczos steps per layer and training step.")
    sparsity: float = _setting(0.0, "Weight of the sparsity loss.")
    saturation: float = _setting(1.0, "Weight of the upper clip in the sparsity loss.")
    eps: str = _setting("1.58", "Radius to certify, in pixels of [0, 1]; 36/255 is read exactly.")
    train_eps: str | None = _setting(None, "Radius to train at, the same as eps if left out.")
    kappa: float = _setting(0.0, "Final weight of the clean cross-entropy, between 0 and 1.")

    epochs: int = _setting(20, "Passes over the training data.")
    warmup: float = _setting(0.0, "Epochs of plain cross-entropy at the start.")
    ramp: float = _setting(10.0, "Epochs over which epsilon rises and kappa falls.")
    batch_size: int = _setting(256, "Images per step, of all processes together.")
    lr: float = _setting(1e-3, "Learning rate of Adam.")
    end_lr: float = _setting(5e-6, "Learning rate at the end.")
    lr_hold: float = _setting(0.5, "Fraction of the epochs before the learning rate decays.")
    weight_decay: float = _setting(0.0, "Weight decay (decoupled).")
    clip_grad: float | None = _setting(None, "Largest gradient norm; none if left out.")
    ema: float | None = _setting(None, "Decay of the weights' moving average; none if left out.")
    precision: str = _setting("no", "Precision of the training forward pass.", ("no", "bf16"))
    seed: int = _setting(0, "Seed of weights, data order and augmentation.")

    out: str = _setting("runs/train", "Folder for checkpoints, logs and the resolved configuration.")
    checkpoint_every: int = _setting(500, "Steps between checkpoints; one is also written after every epoch.")
    log_every: int = _setting(50, "Steps between rows of the log.")

    def __post_init__(self) -> None:
        for item in fields(self):
            choices, value = item.metadata["choices"], getattr(self, item.name)
            if choices is not None and value not in choices:
                raise UnknownMethodError(value, choices, kind=item.name)
        for name in ("epochs", "batch_size", "bound_iterations", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("sparsity", "saturation", "warmup", "ramp", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative; got {getattr(self, name)}.")
        for name in ("kappa", "lr_hold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie between 0 and 1; got {getattr(self, name)}.")
        parse_epsilon(self.eps)
        parse_epsilon(self.train_eps or self.eps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_from(values: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
    """A ``TrainConfig`` from plain values; numbers may be written as YAML reads them (``eps: 1.58``, ``lr: 1e-3``).

    Raises:
        ConfigError: an unknown name (the nearest known one is suggested), or a value of the wrong kind.
    """
    known = {item.name: item for item in fields(TrainConfig)}
    cleaned: dict[str, Any] = {}
    for name, value in values.items():
        key = str(name).replace("-", "_")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(known)}."
            raise ConfigError(f"{source}: unknown setting {name!r}{hint}")
        cleaned[key] = _converted(key, value, str(known[key].type), source)
    return TrainConfig(**cleaned)


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: the file is absent, is no YAML, or holds no settings.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a YAML configuration ({error}).") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings, one `name: value` a line.")
    return content


def write_config(config: TrainConfig, path: Path) -> None:
    """Saves the resolved configuration; ``--config`` reads it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")


def default_of(name: str) -> Any:
    """Default value of a setting."""
    (item,) = [item for item in fields(TrainConfig) if item.name == name]
    return None if item.default is MISSING else item.default


def _converted(name: str, value: Any, kind: str, source: str) -> Any:
    """``value`` as the field's type; YAML's 1.1 dialect reads 1e-3 as text."""
    if value is None:
        if "None" not in kind:
            raise ConfigError(f"{source}: {name} needs a value.")
        return None
    base = kind.replace(" | None", "")
    try:
        if base == "bool":
            if not isinstance(value, bool):
                raise ValueError("write true or false")
            return value
        if base == "int":
            if float(value) != int(float(value)) or isinstance(value, bool):
                raise ValueError("it must be a whole number")
            return int(float(value))
        return float(value) if base == "float" else str(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {name}={value!r} is no {base} ({error}).") from error
