"""Where images come from: memory or files, asked for by index."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lirpa_lip.errors import DataError


class ImageSource(Protocol):
    """Images that can be asked for by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, channels, height, width) float32 in [0, 1] and labels (n,) int64."""
        ...


@dataclass(frozen=True)
class TensorSource:
    """Images in memory as bytes, (n, channels, height, width) uint8 or float in [0, 1]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images = self.images[indices]
        images = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
        return images, self.labels[indices]


@dataclass(frozen=True)
class Subset:
    """The samples of ``source`` at ``indices``."""

    source: ImageSource
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.source.batch(self.indices[indices])


@dataclass(frozen=True)
class FileSource:
    """Images read from their files when asked for, by a few threads."""

    paths: tuple[Path, ...]
    labels: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        paths = [self.paths[i] for i in indices.tolist()]
        with ThreadPoolExecutor(max_workers=8) as pool:
            images = list(pool.map(lambda path: read_image(path, self.size), paths))
        return torch.stack(images).float() / 255.0, self.labels[indices]


def read_image(path: Path, size: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            array = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}).") from error
    return torch.from_numpy(array).permute(2, 0, 1)


def first_of(source: ImageSource, count: int) -> ImageSource:
    """The first samples of a source, ``count`` at most."""
    return Subset(source, torch.arange(min(count, len(source))))
