"""Inputs to be verified: arrays in files, folders of images, and the data sets of ``lirpa-lip train``."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lirpa_lip.errors import DataError, NonFiniteError
from lirpa_lip.training.sources import read_image

_INPUTS, _LABELS = ("x", "images", "inputs", "data"), ("y", "labels", "label", "targets")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}


@dataclass(frozen=True)
class Samples:
    """``x`` (n, *shape), floating point, and labels (n,), or None; with per-feature ranges where the file has them.

    Attributes:
        low, high: (n, *shape) float64, ends of per-feature ranges, or None.
        class_names: what the labels stand for, where the source says it.
    """

    x: Tensor
    labels: Tensor | None
    low: Tensor | None = None
    high: Tensor | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def first(self, count: int | None) -> Samples:
        labels, low, high = (None if t is None else t[:count] for t in (self.labels, self.low, self.high))
        return Samples(self.x[:count], labels, low, high, self.class_names)


def read_samples(source: str, shape: Sequence[int], data_dir: str | None = None, split: str = "test") -> Samples:
    """Samples of a file, a folder or a data set, for a network that takes ``shape``.

    ``.npz``: ``x`` (or images, inputs, data) and, where there are labels, ``y`` (or labels, targets); ``low`` and
    ``high`` for per-feature ranges. ``.npy``: inputs alone. A folder: images, in folders by class (0, 1, … in the order
    of their names) or without labels. Bytes are divided by 255.

    Raises:
        DataError: no such file, or it is damaged; it holds no inputs, or of another shape than the network takes.
        NonFiniteError: an input is NaN or infinite.
    """
    path = Path(source)
    if path.is_dir():
        found = _folder(path, shape)
    elif path.suffix in (".npz", ".npy"):
        found = _arrays(path)
    elif path.exists():
        raise DataError(f"{path} is of no known kind; give .npz, .npy, a folder of images, or the name of a data set.")
    else:
        found = _data_set(source, data_dir, split)
    return _checked(found, tuple(shape), source)


def _arrays(path: Path) -> Samples:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; check the path.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as arrays ({error}); save it with numpy.savez(path, x=…, y=…)."
        ) from error
    name = next((n for n in _INPUTS if n in arrays), None)
    if name is None:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; inputs are looked for as {', '.join(_INPUTS)}."
        )
    labels = next((arrays[n] for n in _LABELS if n in arrays), None)
    ends = [torch.from_numpy(_real(n, arrays[n], path)) if n in arrays else None for n in ("low", "high")]
    if (ends[0] is None) != (ends[1] is None):
        raise DataError(f"{path} holds only one of low and high; give both ends of the ranges.")
    return Samples(_numbers(arrays[name], path), None if labels is None else _labels(labels, path), *ends)


def _real(name: str, array: np.ndarray, path: Path) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{path}: {name} has type {array.dtype}; give numbers.")
    return array.astype(np.float64)


def _labels(array: np.ndarray, path: Path) -> Tensor:
    wide = _real("the array of labels", array, path)
    if wide.ndim != 1 or not np.isfinite(wide).all() or not np.array_equal(wide, np.floor(wide)):
        raise DataError(f"{path}: labels of shape {wide.shape} are given; give one whole number for each input.")
    if wide.size and abs(wide).max() >= 2**62:
        raise DataError(f"{path}: {wide.max():g} is no label; give the class of each input, counted from 0.")
    return torch.from_numpy(array.astype(np.int64))


def _numbers(array: np.ndarray, path: Path) -> Tensor:
    if array.dtype == np.uint8:
        return torch.from_numpy(array.astype(np.float32)) / 255
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{path}: inputs have type {array.dtype}; give bytes 0…255 or floating point numbers.")
    return torch.from_numpy(array.astype(np.float64) if array.dtype == np.float64 else array.astype(np.float32))


def _folder(path: Path, shape: Sequence[int]) -> Samples:
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    folders = [path / name for name in classes] or [path]
    files = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"{path} holds no images.")
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] != 3:
        raise DataError(f"images in folders are for networks that take (3, side, side); this one takes {tuple(shape)}.")
    images = torch.stack([read_image(file, shape[1]) for file, _ in files]).float() / 255
    if not classes:
        return Samples(images, None)
    return Samples(images, torch.tensor([label for _, label in files]), class_names=tuple(classes))


def _data_set(name: str, data_dir: str | None, split: str) -> Samples:
    from lirpa_lip.training.data import DATASETS, load_data

    if name not in DATASETS:
        raise DataError(f"there is no file or folder {name}, and no data set of that name: {', '.join(DATASETS)}.")
    found = load_data(name, data_dir)
    source = getattr(found, split)
    if not len(source):
        raise DataError(f"the {split} split of {name} holds no images; choose another --split.")
    images, labels = source.batch(torch.arange(len(source)))
    return Samples(images, labels, class_names=found.class_names)


def _checked(found: Samples, shape: tuple[int, ...], source: str) -> Samples:
    x = found.x
    if not x.ndim or not len(x):
        raise DataError(f"{source} holds no inputs; give an array with one after the other.")
    here = tuple(x.shape[1:])
    if here != shape:
        if len(shape) == 3 and here == (*shape[1:], shape[0]):
            raise DataError(
                f"{source} has images with channels last, {here}; the network takes {shape}: transpose them."
            )
        if x[0].numel() != torch.Size(shape).numel() or (len(here) > 1 and len(shape) > 1):
            raise DataError(f"{source} has inputs of shape {here}; the network takes {shape}.")
        x = x.reshape(len(x), *shape)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(f"{source}", "give finite inputs")
    if found.labels is not None and len(found.labels) != len(x):
        raise DataError(f"{source} has {len(found.labels)} labels for {len(x)} inputs.")
    ends = []
    for end in (found.low, found.high):
        if end is not None and end.numel() != x.numel():
            raise DataError(f"{source} has ranges of shape {tuple(end.shape)} for inputs of shape {tuple(x.shape)}.")
        ends.append(None if end is None else end.reshape(x.shape))
    low, high = ends
    if low is not None and high is not None:
        _check_ranges(low, high, source)
    return replace(found, x=x, low=low, high=high)


def _check_ranges(low: Tensor, high: Tensor, source: str) -> None:
    for index, (a, b) in enumerate(zip(low.flatten(1), high.flatten(1))):
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise DataError(f"{source}: sample {index} has a range that is not finite; give both ends.")
        if bool((a > b).any()):
            raise DataError(f"{source}: a range of sample {index} is empty: low exceeds high.")
