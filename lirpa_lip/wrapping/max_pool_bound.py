"""Max pooling in auto_LiRPA's methods, for every window: overlapping, padded, dilated, or cut off at the edge.

Over a box [l, u] of one window, let k be the input of the greatest upper end U = u_k, and v the greatest of the other
inputs' upper ends and of l_k. Then

    x_j  ≤  max(x)  ≤  max(x_k, v)  ≤  v + a (x_k − l_k),    a = (U − v) / (U − l_k),

for every j: below, the input of the greatest lower end is taken; above is a chord. It meets U at x_k = u_k with a slope
≥ 0, so that it is nowhere above the constant U, which auto_LiRPA takes where the greatest input is not known. A slope
between 0 and a is valid, and so is any convex combination of lower lines; α-CROWN mixes the lines of j and k, and
shrinks a.

CROWN is not monotone in its pre-activation bounds: a ReLU picks its lower line by them, and tighter ones may make it
pick worse (on 8×8 images with ε = 0.1, 5 of 864 outputs came out wider, by up to 31 %). Where auto_LiRPA's rule is
right, its constants are therefore kept while pre-activations are bounded, and chords are for the output: then every
bound is at least as tight as its own, because all relaxations but these are the same.

Windows that do not overlap keep convolutions in patches mode.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from auto_LiRPA.linear_bound import LinearBound
from auto_LiRPA.patches import Patches, compute_patches_stride_padding
from torch import Tensor

from lirpa_lip.activations.planes import ratio
from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.network.adapters.pooling import window_index
from lirpa_lip.wrapping.coefficients import dense, finite_product, unfold
from lirpa_lip.wrapping.relaxed_bound import RelaxedActivation, tell_patch_size

_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class BoundMaxPool(RelaxedActivation):
    """Max pooling in one to three dimensions; input: (batch, channels, *space)."""

    def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.kernel = tuple(attr["kernel_shape"])
        axes = len(self.kernel)
        self.stride = tuple(attr.get("strides", [1] * axes))
        pads = tuple(attr.get("pads", [0] * 2 * axes))
        self.padding, even = pads[:axes], pads[:axes] == pads[axes:]
        self.dilation = tuple(attr.get("dilations", [1] * axes))
        self.ceil_mode = bool(attr.get("ceil_mode", 0))
        if not even:
            raise UnsupportedOperatorError("", "BoundMaxPool", reason=f"padding {pads} differs between two sides")
        square = axes == 2 and len(set(self.kernel)) == len(set(self.padding)) == 1
        apart = self.stride == self.kernel and set(self.dilation) == {1} and not self.ceil_mode
        self.knows_patches = square and apart
        self.needs_matrix = not self.knows_patches
        self.theirs_is_right = square and apart and not any(pads)

    def thresholds(self) -> tuple[Tensor, ...]:
        return ()

    def forward(self, x: Tensor) -> Tensor:
        options = {"padding": self.padding, "dilation": self.dilation, "ceil_mode": self.ceil_mode}
        return _POOL[len(self.kernel)](x, self.kernel, self.stride, **options)

    # ---- lines ----------------------------------------------------------------------------------------------------
    def default_mix(self, lower: Tensor, upper: Tensor, *thresholds: Tensor) -> list[Tensor]:
        outputs = lower.new_zeros(lower.shape[0], *self.output_shape[1:])
        return [outputs, outputs + 1]

    def _lines(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flat positions of j and k in the image, and the slope a and the value U; all (batch, channels, *windows)."""
        space = (self.stride, self.padding, self.dilation)
        flat = window_index(lower.shape[2:], self.kernel, *space, ceil=self.ceil_mode).to(lower.device)
        low, high = lower.flatten(2)[:, :, flat], upper.flatten(2)[:, :, flat]
        place = flat.expand_as(low)
        first, second = low.argmax(2, keepdim=True), high.argmax(2, keepdim=True)
        low_at, most, at = low.gather(2, second), high.gather(2, second), place.gather(2, second)
        # a pixel may be read twice, where padding is replaced by a pixel inside
        others = high.masked_fill(place == at, -torch.inf).amax(2, keepdim=True)
        slope = ratio(most - torch.maximum(others, low_at), most - low_at, at_zero=1.0)
        slope = torch.where(torch.isfinite(most) & torch.isfinite(low_at), slope, 0.0)
        shape = (*lower.shape[:2], *self.output_shape[2:])
        found = (place.gather(2, first), at, slope, most)
        return tuple(t.reshape(shape) for t in found)  # type: ignore[return-value]

    # ---- backward mode --------------------------------------------------------------------------------------------
    def bound_backward(
        self,
        last_lA: Any,
        last_uA: Any,
        x: Any,
        *_: Any,
        start_node: Any = None,
        unstable_idx: Any = None,
        **kwargs: Any,
    ):
        lower, upper = self._bounds(x)
        lines = self._lines(lower, upper)
        if self.theirs_is_right and start_node is not None and start_node.output_name:
            lines = (*lines[:2], (lines[2] == 1).to(lower.dtype), lines[3])
        name = start_node.name if start_node is not None else ""
        tell_patch_size(self, start_node, lower.shape[0])

        def one_side(A: Any, side: int):
            if A is None:
                return None, 0
            if isinstance(A, Patches) and (self.needs_matrix or A.inserted_zeros):
                A = dense(A, self.output_shape[1:])
            mix = self._mix(name, lower, upper, side, A, unstable_idx)
            through = _through_patches if isinstance(A, Patches) else _through_matrix
            return through(self, A, side, lines, mix, lower.shape[1:])

        lA, lower_bias = one_side(last_lA, 0)
        uA, upper_bias = one_side(last_uA, 1)
        return [(lA, uA)], lower_bias, upper_bias

    # ---- forward mode ---------------------------------------------------------------------------------------------
    def bound_forward(self, dim_in: int, x: LinearBound, *_: LinearBound) -> LinearBound:
        first, second, slope, most = self._lines(*self._bounds(x))

        def taken(source: Tensor, at: Tensor) -> Tensor:
            at = at.flatten(2) if source.ndim == at.ndim else at.flatten(2).unsqueeze(1)
            values = source.flatten(at.ndim - 1)
            return values.gather(-1, at.expand(*values.shape[:-1], -1)).unflatten(-1, self.output_shape[2:])

        upper_bias = slope * taken(x.ub, second) + finite_product(1 - slope, most)
        weights = (None, None)
        if x.lw is not None:
            weights = taken(x.lw, first), slope.unsqueeze(1) * taken(x.uw, second)
        return LinearBound(weights[0], taken(x.lb, first), weights[1], upper_bias)


def _split(entries: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The entries which take the lower lines, and those which take the upper ones."""
    positive, negative = entries.clamp(min=0), entries.clamp(max=0)
    return (positive, negative) if side == 0 else (negative, positive)


def _through_matrix(
    pool: BoundMaxPool, A: Tensor, side: int, lines: Any, mix: Any, shape: Any
) -> tuple[Tensor, Tensor]:
    """``A`` (rows, batch, channels, *windows) pulled back to the image, and its bias (rows, batch)."""
    first, second, slope, most = lines
    below, above = _split(A, side)
    slope = slope * mix[1]
    moved = A.new_zeros(*A.shape[:3], shape[1:].numel())
    for at, entries in ((first, below * (1 - mix[0])), (second, below * mix[0] + above * slope)):
        moved = moved.scatter_add(-1, at.flatten(2).expand(*A.shape[:3], -1), entries.flatten(3))
    return moved.reshape(*A.shape[:2], *shape), finite_product(above * (1 - slope), most).flatten(2).sum(2)


def _through_patches(
    pool: BoundMaxPool, A: Patches, side: int, lines: Any, mix: Any, shape: Any
) -> tuple[Patches, Tensor]:
    """The same for patches over the windows: each entry goes to the pixels of its window, times their slopes."""
    first, second, slope, most = lines
    slope = slope * mix[1]
    below, above = _split(A.patches, side)
    bias = (above * unfold(_rows(finite_product(1 - slope, most), most), A)).sum((-3, -2, -1))
    size = pool.kernel[0]
    wide = [entries.repeat_interleave(size, -1).repeat_interleave(size, -2) for entries in (below, above)]
    padding, stride, output_padding = compute_patches_stride_padding(
        pool.input_shape, A.padding, A.stride, pool.padding, pool.stride, A.inserted_zeros, A.output_padding
    )
    image = {"stride": stride, "padding": padding, "output_padding": output_padding}
    moved = A.create_similar(wide[0], **image)
    lower_slopes = _on_image(first, 1 - mix[0], shape) + _on_image(second, mix[0], shape)
    slopes = (unfold(s, moved) for s in (lower_slopes, _on_image(second, slope, shape)))
    product = sum(entries * s for entries, s in zip(wide, slopes, strict=True))
    return A.create_similar(product, **image), bias


def _rows(coefficient: Tensor, like: Tensor) -> Tensor:
    return coefficient if coefficient.ndim > like.ndim else coefficient.unsqueeze(0)


def _on_image(at: Tensor, slope: Tensor, shape: torch.Size) -> Tensor:
    """One slope per window, at one of its pixels: (rows or 1, batch, *shape)."""
    slope = _rows(slope, at).flatten(3)
    image = slope.new_zeros(*slope.shape[:3], shape[1:].numel())
    return image.scatter(-1, at.flatten(2).expand_as(slope), slope).unflatten(-1, shape[1:])
