"""auto_LiRPA's view of a two-dimensional convolution, with valid patches for groups and dilation.

auto_LiRPA's patches take every kernel for that of a plain convolution: with groups or dilation its bounds are wrong.
Here such a kernel is written as that of the plain convolution it equals, with zeros between its entries (dilation) and
between its groups, while coefficients travel as patches; matrices take the kernel as it is.

It also takes coefficients for free of padding as soon as *one* of the nodes that read the convolution is a ReLU. The
padding is taken out here whoever reads it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from auto_LiRPA import bound_ops
from auto_LiRPA.bound_ops import Bound
from auto_LiRPA.patches import Patches
from torch import Tensor


class BoundConv(bound_ops.BoundConv):
    """A convolution over images, of any groups and dilation."""

    dilation: list[int]
    groups: int

    def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.knows_patches = all(len(set(attr[key])) == 1 for key in ("kernel_shape", "strides", "dilations", "pads"))

    relu_followed = property(lambda self: False, lambda self, value: None)  # auto_LiRPA assigns it

    def bound_backward(self, last_lA: Any, last_uA: Any, *x: Bound, **options: Any):
        dilation, groups = list(self.dilation), self.groups
        patches = isinstance(last_uA if last_lA is None else last_lA, Patches)
        spread = dilation if patches or len(set(dilation)) > 1 else [1] * len(dilation)
        split = groups if patches else 1
        if self.is_input_perturbed(1) or (split == 1 and set(spread) == {1}):
            return super().bound_backward(last_lA, last_uA, *x, **options)
        kernel = SimpleNamespace(lower=plain_kernel(x[1].lower, split, spread))
        if set(spread) != {1}:
            self.dilation = [1] * len(dilation)
        self.groups = groups // split
        try:
            return super().bound_backward(last_lA, last_uA, x[0], kernel, *x[2:], **options)
        finally:
            self.dilation, self.groups = dilation, groups


def plain_kernel(weight: Tensor, groups: int, dilation: list[int]) -> Tensor:
    """The kernel (out, in, *size) without groups and dilation that does what ``weight (out, in / groups, *)`` does."""
    for axis, step in enumerate(dilation, start=2):
        if step > 1:
            shape = list(weight.shape)
            shape[axis] = (shape[axis] - 1) * step + 1
            wide = weight.new_zeros(shape)
            places = torch.arange(weight.shape[axis], device=weight.device) * step
            weight = wide.index_copy(axis, places, weight)
    if groups == 1:
        return weight
    parts = weight.chunk(groups)
    zero = torch.zeros_like(parts[0])
    return torch.cat([torch.cat([part if i == j else zero for j in range(groups)], 1) for i, part in enumerate(parts)])
