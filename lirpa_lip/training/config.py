"""Settings of a training run: one dataclass, from which the command line's flags and the YAML files are made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lirpa_lip.errors import ConfigError, LirpaLipError, UnknownMethodError
from lirpa_lip.losses import BOUNDS, LOSSES
from lirpa_lip.methods import RENAMED, current_name, name_before
from lirpa_lip.ranges import BETWEEN, COUNT, NOT_NEGATIVE, POSITIVE, SEED, SHARE, Range, plain_number
from lirpa_lip.training.data import DATASETS, DEFAULT_EPS, RESIZED, SHIPPED, unread_folder
from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.training.models import ACTIVATIONS, ARCHITECTURES
from lirpa_lip.training.rows import replace_file
from lirpa_lip.training.sampling import AUGMENTATIONS
from lirpa_lip.training.schedules import DECAYS
from lirpa_lip.training.starts import INITS

LOSS_NAMES = ("plain", *LOSSES)
FORMAT = 2
"""Of saved settings. 1 had other names of bounds."""
_MARK = "# lirpa-lip settings, format "
#: Settings that files of format 1, which had no mark, lack; they held all others.
_SINCE_FORMAT_1 = {"init", "start_from", "lr_rise", "lr_decay"}


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None, range: Range | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices, "range": range})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a run. ε stays text, so that 36/255 is exact.

    Raises:
        ConfigError: a value that a setting cannot have.
    """

    dataset: str = _setting("digits", "Data set.", tuple(DATASETS))
    data_dir: str | None = _setting(None, "Folder of the data; downloads where it can if left out.")
    image_size: int | None = _setting(None, "Side to resize images to (image folders).", range=COUNT)
    limit: int | None = _setting(None, "Use this many training (and test) images at most.", range=COUNT)
    validation: float = _setting(
        0.1, "Fraction (or number) of the training images held out to choose the best checkpoint.", range=NOT_NEGATIVE
    )
    augment: str = _setting("none", "Augmentation.", AUGMENTATIONS)
    normalize: bool = _setting(False, "Normalise by the data set's mean and std inside the network.")

    arch: str = _setting("cnn-small", f"{', '.join(ARCHITECTURES)}, or package.module:factory for your own.")
    activation: str = _setting("clipped_relu", "Activation of the named architectures.", ACTIVATIONS)
    threshold: float | None = _setting(
        None, "Start of the clipping thresholds; the published one if left out.", range=POSITIVE
    )

    init: str = _setting("published", "Start of the weights of the named architectures.", INITS)
    start_from: str | None = _setting(
        None, "Run's folder, or checkpoint, of the same network: start from its weights in place of --init."
    )

    loss: str = _setting("gloro", "Training loss.", LOSS_NAMES)
    bound: str = _setting("local-product", "Lipschitz bound inside the loss.", tuple(BOUNDS))
    bound_iterations: int = _setting(2, "Lanczos steps per layer and training step.", range=COUNT)
    sparsity: float = _setting(0.0, "Weight of the sparsity loss.", range=NOT_NEGATIVE)
    saturation: float = _setting(1.0, "Weight of the upper clip in the sparsity loss.", range=NOT_NEGATIVE)
    eps: str | None = _setting(
        None,
        "Radius to certify, in pixels of [0, 1]; 36/255 is read exactly. If left out, the data set's own: "
        + ", ".join(f"{name} {eps}" for name, eps in DEFAULT_EPS.items())
        + ".",
    )
    train_eps: str | None = _setting(None, "Radius to train at, the same as eps if left out.")
    kappa: float = _setting(0.0, "Final weight of the clean cross-entropy.", range=SHARE)

    epochs: int = _setting(20, "Passes over the training data.", range=COUNT)
    warmup: float = _setting(0.0, "Epochs of plain cross-entropy at the start.", range=NOT_NEGATIVE)
    ramp: float = _setting(10.0, "Epochs over which epsilon rises and kappa falls.", range=NOT_NEGATIVE)
    batch_size: int = _setting(256, "Images per step, of all processes together.", range=COUNT)
    lr: float = _setting(1e-3, "Learning rate of Adam.", range=POSITIVE)
    end_lr: float = _setting(5e-6, "Learning rate at the end.", range=POSITIVE)
    lr_rise: float = _setting(0.0, "Epochs over which the learning rate rises from 0.", range=NOT_NEGATIVE)
    lr_hold: float = _setting(0.5, "Fraction of the epochs before the learning rate decays.", range=SHARE)
    lr_decay: str = _setting("exponential", "How the learning rate falls.", DECAYS)
    weight_decay: float = _setting(0.0, "Weight decay (decoupled).", range=NOT_NEGATIVE)
    clip_grad: float | None = _setting(None, "Largest gradient norm; none if left out.", range=POSITIVE)
    ema: float | None = _setting(None, "Decay of the weights' moving average; none if left out.", range=BETWEEN)
    precision: str = _setting("no", "Precision of the training forward pass.", ("no", "bf16"))
    seed: int = _setting(0, "Seed of weights, data order and augmentation.", range=SEED)

    out: str = _setting("runs/train", "Folder for checkpoints, logs and the resolved configuration.")
    checkpoint_every: int = _setting(
        500, "Steps between checkpoints; one is also written after every epoch.", range=COUNT
    )
    log_every: int = _setting(50, "Steps between rows of the log.", range=COUNT)

    def __post_init__(self) -> None:
        if self.bound in RENAMED["train"]:
            object.__setattr__(self, "bound", current_name(self.bound, "train"))
        for item in fields(self):
            choices, allowed, value = item.metadata["choices"], item.metadata["range"], getattr(self, item.name)
            if choices is not None and value not in choices:
                raise UnknownMethodError(value, choices, kind=item.name)
            if allowed is not None and value is not None:
                allowed.check(item.name, value)
        if self.eps is None:
            if self.dataset not in DEFAULT_EPS:
                raise ConfigError(f"eps is needed: {self.dataset!r} has no usual radius; write it as --eps 36/255.")
            object.__setattr__(self, "eps", DEFAULT_EPS[self.dataset])
        parse_epsilon(self.radius)
        parse_epsilon(self.train_eps or self.radius)
        if self.validation > 1 and self.validation != int(self.validation):
            raise ConfigError(f"validation={self.validation:g} is neither a fraction nor a number of images.")
        if not self.out.strip():
            raise ConfigError("out is empty; name a folder (an unset variable on the command line, perhaps?).")

    @property
    def radius(self) -> str:
        """``eps``, which is never None once the settings are made."""
        return str(self.eps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_from(values: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
    """A ``TrainConfig`` from plain values; numbers may be written as YAML reads them (``eps: 1.58``, ``lr: 1e-3``).

    Args:
        source: file or command line that the values are from, for the message.

    Raises:
        ConfigError: an unknown name (the nearest known one is suggested), or a value that cannot be.
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
    try:
        return TrainConfig(**cleaned)
    except UnknownMethodError as error:
        raise UnknownMethodError(error.name, error.choices, kind=f"{error.kind} in {source}") from error
    except LirpaLipError as error:
        raise ConfigError(f"{source}: {error}") from error


def unused_settings(config: TrainConfig) -> list[str]:
    """A sentence for each setting that was given and that nothing reads."""
    found = []
    if config.image_size is not None and config.dataset not in RESIZED:
        found.append(f"image_size is of {' and '.join(RESIZED)} alone; images of {config.dataset} stay as they are.")
    if config.data_dir is not None and config.dataset in SHIPPED:
        found.append(unread_folder(config.dataset, config.data_dir))
    own = ":" in config.arch
    if config.threshold is not None and (own or config.activation == "relu"):
        found.append(f"threshold is not read: {config.arch if own else 'relu'} has none.")
    if own and config.activation != TrainConfig.activation:
        found.append(f"activation is of the named architectures; {config.arch} has its own.")
    return found


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; what the release before saved, which holds every setting, is read as it meant it.

    Raises:
        ConfigError: the file is absent, is no YAML, or holds no settings.
    """
    values, text = _read(path)
    saved = set(values) == {item.name for item in fields(TrainConfig)} - _SINCE_FORMAT_1
    return _as_meant(values, text) if saved else values


def read_run_config(path: Path) -> dict[str, Any]:
    """The settings that a run saved; names of the release before are read as they were meant then."""
    return _as_meant(*_read(path))


def _read(path: str | Path) -> tuple[dict[str, Any], str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a YAML configuration ({error}).") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings, one `name: value` a line.")
    return content or {}, text


def _as_meant(values: dict[str, Any], text: str) -> dict[str, Any]:
    """A file without our mark is older than today's names."""
    if isinstance(values.get("bound"), str) and not text.startswith(_MARK):
        return {**values, "bound": name_before(values["bound"], "train")}
    return values


def write_config(config: TrainConfig, path: Path) -> None:
    """Saves the resolved configuration; ``--config`` reads it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"{_MARK}{FORMAT}\n" + yaml.safe_dump(config.to_dict(), sort_keys=False)
    replace_file(path, text)


def is_run_config(path: Path) -> bool:
    """Whether a file is one that `write_config` wrote."""
    return path.read_bytes().startswith(_MARK.encode())


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
        if isinstance(value, (bool, list, dict)):
            raise ValueError("one number or text is needed")
        if base == "int":
            return _whole(value)
        return plain_number(str(value), float) if base == "float" else str(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{source}: {name}={value!r} is no {base} ({error}).") from error


def _whole(value: Any) -> int:
    """A whole number, also where it is written 1e3, as exactly as it is written."""
    if isinstance(value, int):
        return value
    number = plain_number(str(value), float)
    if not math.isfinite(number):
        raise ValueError("it must be a finite whole number")
    if number != int(number):
        raise ValueError("it must be a whole number")
    return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdigit() else int(number)
