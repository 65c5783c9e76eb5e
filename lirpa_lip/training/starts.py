"""How weights start: as published, with every layer an isometry of what it sees, or as another run left them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
from lirpa_lip.training.models import load_weights

INITS = ("published", "orthogonal")


@torch.no_grad()
def orthogonal_start(model: nn.Module) -> None:
    """Orthogonal weights and zero biases in every linear layer and convolution, in place.

    A convolution of stride s starts as one s × s patch in the middle of its kernel: weight[:, :, m : m + s, m : m + s]
    is a matrix (out, in · s²) with orthonormal rows or columns, the rest is zero. Patches of neighbours do not overlap,
    so its spectral norm is at most 1, whatever the padding, where orthogonal weights that fill the kernel can have
    kernel / s. A bound that multiplies norms starts at 1. After Xiao et al., "Dynamical Isometry and a Mean Field
    Theory of CNNs", ICML 2018, arXiv 1806.05393 (delta-orthogonal starts), here with strides.

    Draws from torch's global generator.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            _start_convolution(layer)
        elif isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _start_convolution(layer: nn.Conv2d) -> None:
    out, inner, *kernel = layer.weight.shape
    sides = [min(stride, size) for stride, size in zip(layer.stride, kernel, strict=True)]
    top, left = ((size - side) // 2 for size, side in zip(kernel, sides, strict=True))
    patch = torch.empty(layer.groups, out // layer.groups, inner * sides[0] * sides[1])
    for matrix in patch:
        nn.init.orthogonal_(matrix)
    layer.weight.zero_()
    layer.weight[:, :, top : top + sides[0], left : left + sides[1]] = patch.reshape(out, inner, *sides)


def start_from(model: nn.Module, path: str | Path) -> None:
    """The weights that another run of the same network is certified by (its best, averaged ones), in place.

    So a run can go on from a cheap bound to a dearer one.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or its network is another.
    """
    found = find_checkpoint(path)
    load_weights(model, load_checkpoint(found).weights, str(found))
