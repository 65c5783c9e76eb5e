"""MaxMin, which sorts pairs of channels, and its clipped form.

Sources: Anil, Lucas, Grosse, "Sorting out Lipschitz function approximation", ICML 2019 (MaxMin); Huang et al., NeurIPS
2021 (arXiv 2111.01395) (clipped at learnable constants on the max and on the min side).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ShapeError
from lirpa_lip.nn.clipped_relu import as_shape, filled
from lirpa_lip.nn.functional import check_threshold_shape, clipped_maxmin, maxmin, split_pairs


class MaxMin(nn.Module):
    """Sorts pairs of channels: channel c pairs with channel c + C/2.

    With x the first and y the second half of the channels, the first half of the output is max(x, y) and the second
    half min(x, y). It permutes its input, so it is 1-Lipschitz and keeps norms; where the order of a pair is stable
    over a region, the permutation is known there.

    Shape: (batch, C, …) → the same, C even.

    Raises:
        ShapeError: C is odd.

    Source: Anil, Lucas & Grosse, ICML 2019, arXiv 1811.05381.

    Example:
        >>> MaxMin()(torch.tensor([[1.0, 5.0, 3.0, 4.0]])).tolist()  # pairs (1, 3) and (5, 4)
        [[3.0, 5.0, 1.0, 4.0]]
    """

    def forward(self, z: Tensor) -> Tensor:
        """The maxima, then the minima, of the pairs of channels of ``z``, ``(batch, C, …)``."""
        return maxmin(z)


class ClippedMaxMin(nn.Module):
    """Sorts pairs of channels and clips each side at a learnable constant.

    With x the first and y the second half of the channels: the first half of the output is min(max(x, y), a), the
    second half max(min(x, y), b). A sort and a clip are 1-Lipschitz each, for any a and b, and each side clips on its
    own: the first half is constant where x or y stays above a, the second where x or y stays below b. a ≥ b is the
    usual start, but nothing here needs it and it is not enforced.

    The thresholds are plain parameters ``max_threshold`` (a) and ``min_threshold`` (b), of either sign. Published
    starts: (0.1, −0.1) in the first layer, growing to (0.3, −0.3) in the last convolution and (1.2, −1.2) in the
    fully connected layer.

    Args:
        shape: the shape *of the input*, ``z.shape[1:]`` for one pair of thresholds per pair of neurons; ``(C,)`` (or
            an integer) or ``(C, 1, 1)`` for one per pair of channels. C is even; the thresholds have C/2 in its place.
        max_threshold: initial a, a number or a tensor that broadcasts to the thresholds' shape.
        min_threshold: initial b, likewise.
        learnable: whether a and b are parameters (else buffers, saved but never trained).

    Shape: (batch, C, …) → the same.

    Raises:
        ConfigError: a threshold is not finite, or ``shape`` is none.
        ShapeError: C is odd, or the input does not fit ``shape``.

    Source: Huang, Zhang, Shi, Kolter & Anandkumar, NeurIPS 2021, arXiv 2111.01395.

    Example:
        >>> ClippedMaxMin(2, max_threshold=2.0, min_threshold=-2.0)(torch.tensor([[-3.0, 5.0]])).tolist()
        [[2.0, -2.0]]
    """

    max_threshold: Tensor
    min_threshold: Tensor

    def __init__(
        self,
        shape: int | tuple[int, ...] | torch.Size,
        max_threshold: float | Tensor = 0.1,
        min_threshold: float | Tensor = -0.1,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        channels, *rest = as_shape(shape)
        if channels % 2:
            raise ShapeError(f"ClippedMaxMin pairs channels and needs an even number of them; shape={shape!r}.")
        half = (channels // 2, *rest)
        for name, value in (("max_threshold", max_threshold), ("min_threshold", min_threshold)):
            raw = filled(half, value, name)
            if learnable:
                self.register_parameter(name, nn.Parameter(raw))
            else:
                self.register_buffer(name, raw)

    def forward(self, z: Tensor) -> Tensor:
        """The clipped maxima, then the clipped minima, of the pairs of channels of ``z``, ``(batch, C, …)``."""
        check_threshold_shape(self.max_threshold, split_pairs(z)[0], "ClippedMaxMin, half the channels")
        return clipped_maxmin(z, self.max_threshold, self.min_threshold)

    def extra_repr(self) -> str:
        channels, *rest = self.max_threshold.shape
        return f"shape={(2 * channels, *rest)}, learnable={isinstance(self.max_threshold, nn.Parameter)}"
