"""The fused steps as Triton kernels: one launch where eager code takes seven passes over the batch.

Sums run in float32 for float32 and narrower inputs, and in float64 for float64. On a CPU the kernels run in Triton's
interpreter (``TRITON_INTERPRET=1``), which is how they are tested without a GPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from lirpa_lip.norms.kernels import reference

#: Elements of a row that a program holds at once.
BLOCK = 2048

#: Tile of the masked product: samples, outputs, inputs.
TILE = (16, 64, 64)


@triton.jit
def _lanczos_step(
    z_ptr, mask_ptr, scale_ptr, v_ptr, v_prev_ptr, beta_prev_ptr, next_ptr, alpha_ptr, beta_ptr, n, noise,
    HAS_MASK: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per sample: its row is read from memory once, and from the cache in the two passes after that."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(scale_ptr + row).to(ACC)
    beta_prev = tl.load(beta_prev_ptr + row).to(ACC)
    base = row * n
    total = tl.zeros([BLOCK], dtype=ACC)
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < n
        y = tl.load(z_ptr + base + at, mask=inside, other=0).to(ACC) * scale
        if HAS_MASK:
            y *= tl.load(mask_ptr + base + at, mask=inside, other=0).to(ACC)
        total += y * tl.load(v_ptr + base + at, mask=inside, other=0).to(ACC)
    alpha = tl.sum(total, axis=0)
    square = tl.zeros([BLOCK], dtype=ACC)
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < n
        y = tl.load(z_ptr + base + at, mask=inside, other=0).to(ACC) * scale
        if HAS_MASK:
            y *= tl.load(mask_ptr + base + at, mask=inside, other=0).to(ACC)
        v = tl.load(v_ptr + base + at, mask=inside, other=0).to(ACC)
        v_prev = tl.load(v_prev_ptr + base + at, mask=inside, other=0).to(ACC)
        w = y - alpha * v - beta_prev * v_prev
        square += w * w
    beta = tl.sqrt(tl.sum(square, axis=0))
    beta = tl.where(beta > noise * tl.sqrt(alpha * alpha + beta_prev * beta_prev), beta, 0.0)
    inverse = tl.where(beta > 0, 1.0 / tl.where(beta > 0, beta, 1.0), 0.0)
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < n
        y = tl.load(z_ptr + base + at, mask=inside, other=0).to(ACC) * scale
        if HAS_MASK:
            y *= tl.load(mask_ptr + base + at, mask=inside, other=0).to(ACC)
        v = tl.load(v_ptr + base + at, mask=inside, other=0).to(ACC)
        v_prev = tl.load(v_prev_ptr + base + at, mask=inside, other=0).to(ACC)
        w = (y - alpha * v - beta_prev * v_prev) * inverse
        tl.store(next_ptr + base + at, w.to(next_ptr.dtype.element_ty), mask=inside)
    tl.store(alpha_ptr + row, alpha.to(alpha_ptr.dtype.element_ty))
    tl.store(beta_ptr + row, beta.to(beta_ptr.dtype.element_ty))


def lanczos_step(
    z: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    v: Tensor,
    v_prev: Tensor,
    beta_prev: Tensor,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.lanczos_step`; a program reads each place of ``v_prev`` before it writes there."""
    size, n = v.shape
    accumulate = tl.float64 if v.dtype == torch.float64 else tl.float32
    block = min(BLOCK, max(16, triton.next_power_of_2(n)))
    noise = reference.NOISE * torch.finfo(v.dtype).eps
    v_next = torch.empty(size, n, dtype=v.dtype, device=v.device) if out is None else out
    alpha, beta = torch.empty_like(scale), torch.empty_like(scale)
    rows = [tensor.contiguous() for tensor in (z, z if mask is None else mask, scale, v, v_prev, beta_prev)]
    with _on(v):
        _lanczos_step[(size,)](*rows, v_next, alpha, beta, n, noise, mask is not None, accumulate, block)
    return v_next, alpha, beta


@triton.jit
def _masked_matmul(
    x_ptr, w_ptr, in_ptr, out_ptr, y_ptr, size, n_in, n_out, w_out, w_in,
    HAS_IN: tl.constexpr, HAS_OUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program per tile of the result; a tile whose output mask is empty does nothing, and so does an input tile."""
    sample = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (sample < size)[:, None] & (column < n_out)[None, :]
    place = sample.to(tl.int64)[:, None] * n_out + column[None, :]
    live = 1.0
    out_mask = tl.full([BM, BN], 1.0, tl.float32)
    if HAS_OUT:
        out_mask = tl.load(out_ptr + place, mask=inside, other=0).to(tl.float32)
        live = tl.max(tl.max(tl.abs(out_mask), axis=1), axis=0)
    total = tl.zeros([BM, BN], dtype=tl.float32)
    if live > 0:
        for first in range(0, n_in, BK):
            row = first + tl.arange(0, BK)
            read = (sample < size)[:, None] & (row < n_in)[None, :]
            where = sample.to(tl.int64)[:, None] * n_in + row[None, :]
            some = 1.0
            in_mask = tl.full([BM, BK], 1.0, tl.float32)
            if HAS_IN:
                in_mask = tl.load(in_ptr + where, mask=read, other=0).to(tl.float32)
                some = tl.max(tl.max(tl.abs(in_mask), axis=1), axis=0)
            if some > 0:
                x = tl.load(x_ptr + where, mask=read, other=0).to(tl.float32) * in_mask
                weight_inside = (row < n_in)[:, None] & (column < n_out)[None, :]
                weight_at = row.to(tl.int64)[:, None] * w_in + column.to(tl.int64)[None, :] * w_out
                weight = tl.load(w_ptr + weight_at, mask=weight_inside, other=0).to(tl.float32)
                total += tl.dot(x, weight, input_precision="ieee")
    tl.store(y_ptr + place, (total * out_mask).to(y_ptr.dtype.element_ty), mask=inside)


def masked_matmul(x: Tensor, weight: Tensor, mask_in: Tensor | None, mask_out: Tensor | None) -> Tensor:
    """As `reference.masked_matmul`; float64 goes there, since tensor cores sum it no faster than the library."""
    if x.dtype == torch.float64:
        return reference.masked_matmul(x, weight, mask_in, mask_out)
    (size, n_in), n_out = x.shape, weight.shape[0]
    y = torch.empty(size, n_out, dtype=x.dtype, device=x.device)
    x = x.contiguous()
    masks = [x if mask is None else mask.contiguous() for mask in (mask_in, mask_out)]
    grid = (triton.cdiv(size, TILE[0]), triton.cdiv(n_out, TILE[1]))
    strides = weight.stride()
    with _on(x):
        _masked_matmul[grid](
            x, weight, *masks, y, size, n_in, n_out, *strides, mask_in is not None, mask_out is not None, *TILE
        )  # fmt: skip
    return y


def _on(tensor: Tensor) -> AbstractContextManager:
    """The tensor's device as the current one, as a launch needs; nothing on a CPU, where the interpreter runs."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
