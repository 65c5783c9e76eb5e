"""Maps and masks of awkward shapes, and the oracle: float64 singular values of the matrix written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lirpa_lip.norms.linear_map import (
    ComposedMap,
    Conv1dMap,
    Conv2dMap,
    ConvTranspose2dMap,
    DenseMap,
    DiagonalMap,
    LinearMap,
    MaskedMap,
    ReshapeMap,
    SumMap,
)

Build = Callable[[torch.dtype], LinearMap]


def _composed(dtype: torch.dtype) -> LinearMap:
    """Two convolutions with a scale per sample between: entries are not at hand."""
    scale = DiagonalMap(torch.rand(5, 4, 6, 5, dtype=dtype), (4, 6, 5))
    first = Conv2dMap(torch.randn(4, 2, 3, 3, dtype=dtype), (2, 6, 5), padding=1)
    second = Conv2dMap(torch.randn(3, 4, 3, 3, dtype=dtype), (4, 6, 5), stride=2, padding=1)
    return ComposedMap([second, scale, first])


def _wrapped(dtype: torch.dtype) -> LinearMap:
    """A convolution between scales (one of them negative, one per sample) and a change of shape."""
    conv = Conv2dMap(torch.randn(3, 2, 3, 3, dtype=dtype), (2, 5, 5), padding=1)
    before, after = DiagonalMap(torch.randn(2, 5, 5, dtype=dtype), (2, 5, 5)), torch.randn(5, 3, 5, 5, dtype=dtype)
    return ComposedMap([ReshapeMap((3, 5, 5), (75,), dtype), DiagonalMap(after, (3, 5, 5)), conv, before])


BUILDERS: dict[str, Build] = {
    "wide": lambda dtype: DenseMap(torch.randn(17, 61, dtype=dtype)),
    "tall": lambda dtype: DenseMap(torch.randn(113, 37, dtype=dtype)),
    "large": lambda dtype: DenseMap(torch.randn(150, 131, dtype=dtype)),
    "row": lambda dtype: DenseMap(torch.randn(1, 9, dtype=dtype)),
    "column": lambda dtype: DenseMap(torch.randn(9, 1, dtype=dtype)),
    "repeated": lambda dtype: DenseMap(torch.eye(12, dtype=dtype)),
    "conv": lambda dtype: Conv2dMap(torch.randn(5, 3, 3, 3, dtype=dtype), (3, 8, 7), padding=1),
    "strided": lambda dtype: Conv2dMap(torch.randn(6, 2, 4, 4, dtype=dtype), (2, 11, 10), stride=2, padding=1),
    "grouped": lambda dtype: Conv2dMap(
        torch.randn(4, 2, 3, 2, dtype=dtype), (4, 9, 8), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2
    ),
    "conv1d": lambda dtype: Conv1dMap(torch.randn(4, 3, 5, dtype=dtype), (3, 23), stride=2, padding=2),
    "transposed": lambda dtype: ConvTranspose2dMap(torch.randn(3, 2, 3, 3, dtype=dtype), (3, 4, 5), 2, 1, 1),
    "diagonal": lambda dtype: DiagonalMap(torch.randn(4, 5, dtype=dtype), (4, 5)),
    "composed": _composed,
    "wrapped": _wrapped,
    "residual": lambda dtype: SumMap(
        [DenseMap(torch.randn(20, 20, dtype=dtype)), DiagonalMap(torch.ones(20, dtype=dtype), (20,))]
    ),
}

BATCH = 5


def masks(linear_map: LinearMap, dropped: float, scales: bool) -> tuple[Tensor, Tensor]:
    """Random masks of 5 samples; sample 1 has everything, sample 2 no input, sample 3 one input and one output."""
    both = []
    for shape in (linear_map.in_shape, linear_map.out_shape):
        mask = (torch.rand(BATCH, *shape) >= dropped).to(linear_map.dtype)
        mask[1] = 1
        mask[3] = 0
        mask[3].flatten()[0] = 1
        both.append(mask * torch.rand_like(mask) if scales else mask)
    both[0][2] = 0
    return both[0], both[1]


def singular_values(linear_map: LinearMap, mask_in: Tensor | None, mask_out: Tensor | None) -> Tensor:
    """Largest singular values, ``(B,)``, of the matrices in float64."""
    masked = MaskedMap(linear_map.detach(), mask_in, mask_out).to(torch.float64)
    return torch.linalg.svdvals(masked.dense())[..., 0].reshape(-1)
