"""Products of auto_LiRPA's coefficients with planes, for both of their layouts: matrices and convolution patches."""

from __future__ import annotations

import math

import torch
from auto_LiRPA.patches import Patches, inplace_unfold
from torch import Tensor

from lirpa_lip.operators.planes import Plane, Relaxation


def select_rows(mixes: Tensor, shape: tuple[int, ...], A, unstable_idx) -> Tensor:
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

    Patches over a whole layer are (out_c, batch, out_h, out_w, C, K, K); sparse ones, of the neurons
    ``A.unstable_idx`` only, (rows, batch, C, K, K).
    """
    windows = inplace_unfold(
        coefficient.flatten(0, 1), kernel_size=A.patches.shape[-2:], stride=A.stride, padding=A.padding,
        inserted_zeros=A.inserted_zeros, output_padding=A.output_padding,
    ).unflatten(0, coefficient.shape[:2])  # (rows or 1, batch, out_h, out_w, C, K, K)  # fmt: skip
    rows = coefficient.shape[0]
    if A.unstable_idx is not None:
        i, j = A.unstable_idx[-2:]
        if rows == 1:
            return windows[0][:, i, j].transpose(0, 1)
        return windows[torch.arange(rows, device=i.device), :, i, j]
    if rows in (1, A.patches.shape[0]):
        return windows
    channels, (height, width) = A.patches.shape[0], windows.shape[2:4]
    # One row per neuron (c, i, j): it needs its own window (i, j) alone.
    own = windows.flatten(2, 3).unflatten(0, (channels, height * width)).diagonal(dim1=1, dim2=3)
    return own.movedim(-1, 2).unflatten(2, (height, width))


def multiply(A, relaxations: list[Relaxation], side: int, groups: int):
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
            bias = bias + _finite_product(signed, plane.bias).sum(dim=summed)
    product = torch.cat(columns, dim=channel)
    return (A.create_similar(product) if patches else product), bias


def _finite_product(entries: Tensor, bias: Tensor) -> Tensor:
    """entries · bias, with 0 · inf = 0: a row that does not use a neuron does not suffer from its lack of a bound."""
    product = entries * bias
    if not bool(torch.isinf(bias).any()):
        return product
    return torch.where((entries == 0) & torch.isinf(bias), 0.0, product)
