"""Order of the data and augmentation, as functions of (seed, epoch, step) and of nothing else.

A run that was killed therefore sees, once resumed, exactly what it would have seen, on any number of processes: every
process draws for the whole global batch and keeps its own slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F

from lirpa_lip.errors import ConfigError, UnknownMethodError
from lirpa_lip.training.sources import ImageSource

AUGMENTATIONS = ("none", "crop", "crop-flip")
_PADDING = 4


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of the parts, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in an epoch; the remainder waits for another epoch's order, so that every step weighs the same."""
    if not 1 <= batch_size <= count:
        raise ConfigError(f"batch_size={batch_size} must lie between 1 and the {count} training images.")
    return count // batch_size


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, first_step: int = 0, *, rank: int = 0, processes: int = 1
) -> Iterator[tuple[int, Tensor]]:
    """Yields (step, indices of this process's slice) of an epoch from ``first_step`` on.

    Raises:
        ConfigError: the batch cannot be divided among the processes.
    """
    if batch_size % processes:
        raise ConfigError(f"batch_size={batch_size} (of all processes together) must be a multiple of {processes}.")
    generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
    order = torch.randperm(count, generator=generator)
    for step in range(first_step, steps_per_epoch(count, batch_size)):
        yield step, order[step * batch_size : (step + 1) * batch_size][rank::processes]


def prefetched(source: ImageSource, batches: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (step, images, labels) while a thread reads the next batch."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for step, indices in batches:
            following = (step, pool.submit(source.batch, indices))
            if pending is not None:
                yield pending[0], *pending[1].result()
            pending = following
        if pending is not None:
            yield pending[0], *pending[1].result()


def augmented(
    images: Tensor, kind: str, seed: int, epoch: int, step: int, *, rank: int = 0, processes: int = 1
) -> Tensor:
    """Random shifts by up to 4 pixels (zero padding) and, for ``crop-flip``, mirror images.

    Raises:
        UnknownMethodError: no such augmentation.
    """
    if kind not in AUGMENTATIONS:
        raise UnknownMethodError(kind, AUGMENTATIONS, kind="augmentation")
    if kind == "none":
        return images
    generator = torch.Generator().manual_seed(derived_seed("augmentation", seed, epoch, step))
    count = len(images) * processes
    offsets = torch.randint(0, 2 * _PADDING + 1, (2, count), generator=generator)[:, rank::processes]
    flips = torch.rand(count, generator=generator)[rank::processes] < 0.5
    images = _shifted(images, offsets.to(images.device))
    if kind == "crop-flip":
        images = torch.where(flips.to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)
    return images


def _shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Crops image b out of its zero-padded self at row offsets[0, b] and column offsets[1, b]."""
    height, width = images.shape[2:]
    padded = F.pad(images, (_PADDING,) * 4)
    rows = offsets[0].unsqueeze(1) + torch.arange(height, device=images.device)
    columns = offsets[1].unsqueeze(1) + torch.arange(width, device=images.device)
    samples = torch.arange(len(images), device=images.device).reshape(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[samples, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()
