"""Data sets by name: images in [0, 1], a validation split carved from the training data, and where to find the files.

A data set becomes a ``DataBundle`` of three ``ImageSource``s. A source gives a batch for a list of indices, and nothing
else about it is random: order and augmentation belong to ``sampling``, so that a run can be resumed exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lirpa_lip.errors import ConfigError, DataError, UnknownMethodError
from lirpa_lip.ranges import COUNT
from lirpa_lip.training import data_files as files
from lirpa_lip.training.sources import ImageSource, Subset, first_of


@dataclass(frozen=True)
class DataBundle:
    """The three splits, and what a network needs to know of the data.

    ``mean`` and ``std`` are per channel, or None where the data set is used as it is. ``class_names[y]`` is what label
    y stands for.
    """

    name: str
    train: ImageSource
    validation: ImageSource
    test: ImageSource
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None


_CIFAR_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

_Reader = Callable[[Path, int | None], files.Splits]
_Statistics = tuple[tuple[float, ...], tuple[float, ...]]

DATASETS: dict[str, tuple[_Reader, _Statistics | None]] = {
    "digits": (files.digits, None),
    "mnist": (files.mnist, ((0.1307,), (0.3081,))),
    "cifar10": (files.cifar10, _CIFAR_STATISTICS),
    "cifar100": (files.cifar100, ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))),
    "tiny-imagenet": (files.tiny_imagenet, ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))),
    "imagefolder": (files.image_folder, None),
}
"""Name -> (reader, (mean, std) of its training images)."""

SHIPPED = ("digits",)
"""Data sets that need no folder: scikit-learn ships them."""

RESIZED = ("imagefolder", "tiny-imagenet")
"""Data sets whose images ``image_size`` resizes."""

DEFAULT_EPS = {
    "digits": "0.5",
    "mnist": "1.58",
    "cifar10": "36/255",
    "cifar100": "36/255",
    "tiny-imagenet": "36/255",
    "imagefolder": "36/255",
}
"""Name -> the radius that is usual in the literature; the digits, a tenth of MNIST's pixels, have a smaller one."""


def default_data_dir() -> Path:
    """``$LIRPA_LIP_DATA``, or ``~/.cache/lirpa_lip``: where downloads go."""
    return Path(os.environ.get("LIRPA_LIP_DATA") or Path.home() / ".cache" / "lirpa_lip")


def load_data(
    name: str,
    data_dir: str | Path | None = None,
    validation: float | int = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    *,
    limit: int | None = None,
) -> DataBundle:
    """Reads a data set and carves the validation split from its *training* images.

    Args:
        name: a key of ``DATASETS``.
        data_dir: folder (or file) that holds the data; None downloads to ``default_data_dir()``.
        validation: fraction, or number, of training images for validation; 0 for none.
        seed: of the split.
        image_size: side to resize to (image folders only).
        limit: keep this many training images and as many test images at most, for trials.

    Raises:
        UnknownMethodError: no such data set.
        DataError: the folder is not there, does not hold the data, or holds a single class.
    """
    if name not in DATASETS:
        raise UnknownMethodError(name, DATASETS, kind="dataset")
    if data_dir is not None and not Path(data_dir).exists():
        raise DataError(f"--data-dir {data_dir} does not exist; give the folder that holds {name}, or leave it out.")
    reader, statistics = DATASETS[name]
    root = default_data_dir() if data_dir is None else Path(data_dir)
    if data_dir is None:
        _download(name, root)
    train, test, names, shape = reader(root, image_size)
    if len(names) < 2:
        raise DataError(f"{root} holds one class, {', '.join(names)}; a classifier needs at least two.")
    if limit is not None:
        COUNT.check("limit", limit)
        train, test = first_of(train, limit), first_of(test, limit)
    train, held_out = _carve(train, validation, seed)
    mean, std = statistics or (None, None)
    return DataBundle(name, train, held_out, test, len(names), shape, mean, std, names)


def unread_folder(name: str, folder: str | Path) -> str:
    return f"the folder {folder} is not read: scikit-learn ships {name}."


def _download(name: str, root: Path) -> None:
    if name in SHIPPED:
        return
    if name not in files.DOWNLOADERS:
        raise DataError(f"{name} cannot be downloaded for you; give its folder with --data-dir.")
    root.mkdir(parents=True, exist_ok=True)
    files.DOWNLOADERS[name](root)


def _carve(train: ImageSource, validation: float | int, seed: int) -> tuple[ImageSource, ImageSource]:
    count = round(validation * len(train)) if isinstance(validation, float) and validation < 1 else int(validation)
    if not 0 <= count < len(train):
        raise ConfigError(f"validation={validation} leaves nothing of {len(train)} training images to train on.")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return Subset(train, order[count:].sort().values), Subset(train, order[:count].sort().values)
