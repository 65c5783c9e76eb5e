"""Products of auto_LiRPA's coefficients with planes, for both of their layouts: matrices and convolution patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from auto_LiRPA.patches import Patches, inplace_unfold
from torch import Tensor

from lirpa_lip.activations.planes import Plane, Relaxation


def select_rows(mixes: Tensor, shape: tuple[int, ...], A: Any, unstable_idx: Any) -> Tensor:
    """The mixes that belong to the rows of ``A``, out of one per row, one per channel, or one in all.

    Args:
        mixes: (groups, batch, …), where groups divides the number of neurons in ``shape``.
        shape: of the layer the bounds start from, or (specifications,).
        A: a matrix (rows, batch, …) or :class:`Patches`. Patches over the whole layer are left to :func:`unfold`.
        unstable_idx: which neurons the rows of a matrix are, if not all; flat or one index per axis.
    """
    groups, total = mixes.shape[0], math.prod(shape)
    if groups == 1:
        return mixes
    if isinstance(A, Patches):
        if A.unstable_idx is None:
            return mixes
        unstable_idx = A.unstable_idx
    elif unstable_idx is None and A.shape[0] == total:
        unstable_idx = torch.arange(total, device=mixes.device)
    if isinstance(unstable_idx, tuple):
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        unstable_idx = sum(index * stride for index, stride in zip(unstable_idx, strides, strict=True))
    if not isinstance(unstable_idx, Tensor) or unstable_idx.dim() != 1:
        # 0.3 does not tell which rows it has kept: then all share the average, which is as sound as any.
        return mixes.mean(dim=0, keepdim=True)
    return mixes[unstable_idx // (total // groups)]


def unfold(coefficient: Tensor, A: Patches) -> Tensor:
    """A coefficient (rows or 1, batch, C, H, W) laid out like ``A.patches``, zero in the padding.

    Patches over a whole layer are (out_c, batch, out_h, out_w, C, K, K), and the rows may be its channels or its
    neurons; sparse ones, of the neurons ``A.unstable_idx`` only, are (rows, batch, C, K, K).
    """
    rows, (i, j) = coefficient.shape[0], (None, None) if A.unstable_idx is None else A.unstable_idx[-2:]
    if rows == 1 or (i is None and rows == A.patches.shape[0]):
        windows = _windows(coefficient.flatten(0, 1), A).unflatten(0, coefficient.shape[:2])
        return windows if i is None else windows[0][:, i, j].transpose(0, 1)
    # One row per neuron: it needs the window of its own place only, and windows of all would be out_h · out_w as many.
    height, width = coefficient.shape[-2:]
    places = torch.arange(1, height * width + 1, dtype=torch.float64, device=coefficient.device)
    places = _windows(places.view(1, 1, height, width), A)[0, :, :, 0].long()  # (out_h, out_w, K, K), 0 in the padding
    flat = torch.nn.functional.pad(coefficient.flatten(-2), (1, 0))
    if i is not None:
        row = torch.arange(rows, device=flat.device).view(rows, 1, 1)
        return flat[row, :, :, places[i, j]].permute(0, 3, 4, 1, 2)
    space = places.shape[:2]
    neuron = torch.arange(math.prod(space), device=flat.device).view(-1, 1, 1)
    own = flat.unflatten(0, (A.patches.shape[0], -1))[:, neuron, :, :, places.flatten(0, 1)]  # (place, K, K, out_c, …)
    return own.unflatten(0, space).permute(4, 5, 0, 1, 6, 2, 3)


def _windows(image: Tensor, A: Patches) -> Tensor:
    """The windows (n, out_h, out_w, C, K, K) of an image (n, C, H, W) that ``A`` multiplies."""
    return inplace_unfold(
        image,
        kernel_size=A.patches.shape[-2:],
        stride=A.stride,
        padding=A.padding,
        inserted_zeros=A.inserted_zeros,
        output_padding=A.output_padding,
    )


def dense(A: Any, shape: tuple[int, ...]) -> Tensor:
    """Coefficients as a matrix (rows, batch, *shape) of an image ``shape``, whatever the stride and the padding.

    auto_LiRPA's own conversion takes the height of the padded image for its width.
    """
    if not isinstance(A, Patches):
        return A
    height, width = shape[1:]
    places = torch.arange(1, height * width + 1, dtype=torch.float64, device=A.patches.device)
    places = _windows(places.view(1, 1, height, width), A)[0, :, :, 0].long()  # (out_h, out_w, K, K), 0 in the padding
    entries = A.patches
    if A.unstable_idx is None:
        entries = entries.permute(0, 2, 3, 1, 4, 5, 6).flatten(0, 2)  # (rows, batch, C, K, K)
        places = places.flatten(0, 1).repeat(A.patches.shape[0], 1, 1)
    else:
        places = places[A.unstable_idx[-2], A.unstable_idx[-1]]
    entries = entries.flatten(3)
    places = places.flatten(1)[:, None, None].expand_as(entries)
    flat = entries.new_zeros(*entries.shape[:3], height * width + 1).scatter_add(3, places, entries)
    return flat[..., 1:].unflatten(3, (height, width))


def multiply(A: Any, relaxations: list[Relaxation], side: int, groups: int):
    """``A`` · activation, bounded by ``A'`` · pre-activation + bias; from below if ``side`` is 0, else from above.

    Positive entries of ``A`` take the plane of the same side, negative ones that of the other.
    """
    patches = isinstance(A, Patches)
    entries, channel = (A.patches, -3) if patches else (A, 2)

    def laid_out(coefficient: Tensor) -> Tensor:
        own_dims = 4 if patches else entries.dim() - 1
        coefficient = coefficient[None] if coefficient.dim() == own_dims else coefficient
        return unfold(coefficient, A) if patches else coefficient

    summed = tuple(range(-3, 0)) if patches else tuple(range(2, entries.dim()))
    columns: list[Tensor | float] = [0.0] * groups
    bias: Tensor | float = 0.0
    for part, relaxation in zip(entries.chunk(groups, dim=channel), relaxations, strict=True):
        for signed, plane in ((part.clamp(min=0), relaxation[side]), (part.clamp(max=0), relaxation[1 - side])):
            plane = Plane(tuple(map(laid_out, plane.slopes)), laid_out(plane.bias))
            columns = [total + signed * slope for total, slope in zip(columns, plane.slopes, strict=True)]
            bias = bias + finite_product(signed, plane.bias).sum(dim=summed)
    product = torch.cat(columns, dim=channel)
    return (A.create_similar(product) if patches else product), bias


def finite_product(entries: Tensor, bias: Tensor) -> Tensor:
    """entries · bias, with 0 · inf = 0: a row that does not use a neuron does not suffer from its lack of a bound."""
    product = entries * bias
    if not bool(torch.isinf(bias).any()):
        return product
    return torch.where((entries == 0) & torch.isinf(bias), 0.0, product)
