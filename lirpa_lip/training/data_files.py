"""Readers of the data sets' files: ``reader(root, image_size) -> (train, test, class names, shape)``.

torchvision is imported where it is used: it takes a second, and most of the package has no need of it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import lirpa_lip.autolirpa.compat  # noqa: F401  (lets torchvision import beside a CPU-only torch)
from lirpa_lip.errors import ConfigError, DataError
from lirpa_lip.training.sources import FileSource, ImageSource, TensorSource

Shape = tuple[int, int, int]


class Splits(NamedTuple):
    """A data set as it is kept: ``shape`` is (channels, height, width)."""

    train: ImageSource
    test: ImageSource
    class_names: tuple[str, ...]
    shape: Shape


_DIGITS = tuple("0123456789")


def digits(root: Path, image_size: int | None = None) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8 × 8, shipped with it; every fifth one is the test set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16.0
    labels = torch.from_numpy(data.target).long()
    is_test = torch.arange(len(labels)) % 5 == 0
    train, test = (_tensors(images[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    return Splits(train, test, _DIGITS, (1, 8, 8))


def mnist(root: Path, image_size: int | None = None) -> Splits:
    """The four idx files, as torchvision keeps them under ``root/MNIST/raw``."""
    from torchvision.datasets import MNIST

    train, test = (_official(MNIST, root, "MNIST/raw", train=split) for split in (True, False))
    pairs = [_tensors(d.data.unsqueeze(1), d.targets) for d in (train, test)]
    return Splits(pairs[0], pairs[1], _DIGITS, (1, 28, 28))


def cifar10(root: Path, image_size: int | None = None) -> Splits:
    """The official python batches under ``root``, or a ``.npz`` of JPEG bytes (see ``jpeg_archive``)."""
    if root.is_file():
        return jpeg_archive(root)
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, root, "cifar-10-batches-py")


def cifar100(root: Path, image_size: int | None = None) -> Splits:
    """The official python batches under ``root``."""
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, root, "cifar-100-python")


def jpeg_archive(path: Path) -> Splits:
    """A ``.npz`` with, per split, ``<split>_jpeg`` (bytes), ``<split>_offset`` (n + 1) and ``<split>_label``."""
    try:
        with np.load(path) as archive:
            parts = {name: archive[name] for name in archive.files}
        splits = [
            _decode_jpegs(*(parts[f"{split}_{key}"] for key in ("jpeg", "offset", "label")))
            for split in ("train", "test")
        ]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not an archive of JPEG images ({error}).") from error
    images = splits[0].images
    names = tuple(str(name) for name in parts["classes"])
    return Splits(splits[0], splits[1], names, (images.shape[1], images.shape[2], images.shape[3]))


def image_folder(root: Path, image_size: int | None = None) -> Splits:
    """``root/train/<class>/*`` and ``root/test/<class>/*`` (or ``val`` for ``test``), resized to squares."""
    test = root / "test" if (root / "test").is_dir() else root / "val"
    if not (root / "train").is_dir() or not test.is_dir():
        raise DataError(f"{root} needs folders train/<class>/… and test/<class>/… (or val) of images.")
    names = _class_folders(root / "train")
    unknown = sorted(set(_class_folders(test)) - set(names))
    if unknown:
        raise DataError(f"{test} holds classes that {root / 'train'} lacks: {', '.join(unknown)}.")
    if image_size is None:
        raise ConfigError("image folders need image_size: the side, in pixels, that every image is resized to.")
    sources = [_folder_source(folder, names, image_size) for folder in (root / "train", test)]
    return Splits(sources[0], sources[1], tuple(names), (3, image_size, image_size))


def tiny_imagenet(root: Path, image_size: int | None = None) -> Splits:
    """The official ``tiny-imagenet-200`` folder; its labelled validation images are the test set."""
    root = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise DataError(f"{root} does not hold tiny-imagenet-200 (no val/val_annotations.txt).")
    names = _class_folders(root / "train")
    size = image_size or 64
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
    paths = tuple(root / "val" / "images" / name for name, _ in rows)
    test = FileSource(paths, torch.tensor([names.index(label) for _, label in rows]), size)
    return Splits(_folder_source(root / "train", names, size), test, tuple(names), (3, size, size))


def _download_with(name: str) -> Callable[[Path], None]:
    def download(root: Path) -> None:
        from torchvision import datasets

        try:
            getattr(datasets, name)(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name} could not be downloaded to {root} ({error}); give --data-dir a local copy."
            ) from error

    return download


DOWNLOADERS = {
    "mnist": _download_with("MNIST"),
    "cifar10": _download_with("CIFAR10"),
    "cifar100": _download_with("CIFAR100"),
}


def _official(dataset: Any, root: Path, layout: str, **options: Any) -> Any:
    try:
        return dataset(str(root), download=False, **options)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{root} does not hold {dataset.__name__} (expected {root / layout}): {error}") from error


def _class_folders(folder: Path) -> list[str]:
    entries = (entry for entry in folder.iterdir() if entry.is_dir())
    return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def _cifar(dataset: Any, root: Path, layout: str) -> Splits:
    splits = [_official(dataset, root, layout, train=train) for train in (True, False)]
    pairs = [
        _tensors(torch.from_numpy(d.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(d.targets)) for d in splits
    ]
    return Splits(pairs[0], pairs[1], tuple(splits[0].classes), (3, 32, 32))


def _tensors(images: Tensor, labels: Tensor) -> TensorSource:
    return TensorSource(images, labels.long())


def _decode_jpegs(data: np.ndarray, offset: np.ndarray, labels: np.ndarray) -> TensorSource:
    from PIL import Image

    def decode(index: int) -> np.ndarray:
        with Image.open(io.BytesIO(data[offset[index] : offset[index + 1]].tobytes())) as image:
            return np.asarray(image.convert("RGB"))

    images = np.stack([decode(index) for index in range(len(offset) - 1)])
    return _tensors(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))
    )


def _folder_source(folder: Path, names: list[str], size: int) -> FileSource:
    found = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}
    ]
    if not found:
        raise DataError(f"{folder} holds no images in its class folders.")
    return FileSource(tuple(path for path, _ in found), torch.tensor([label for _, label in found]), size)
