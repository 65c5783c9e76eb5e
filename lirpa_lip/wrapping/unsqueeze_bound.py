"""auto_LiRPA's view of an Unsqueeze along several axes at once (the weight of a PReLU), which its own class refuses."""

from __future__ import annotations

from typing import Any

import torch
from auto_LiRPA.bound_ops import Bound
from auto_LiRPA.linear_bound import LinearBound
from torch import Tensor

from lirpa_lip.network.emit import constant_value


class BoundUnsqueeze(Bound):
    """New axes of size 1, given as an attribute (before opset 13) or as a constant input."""

    needs_matrix = True  # new axes after the channels are none that patches know

    def axes(self) -> list[int]:
        given = self.attr["axes"] if "axes" in self.attr else constant_value(self.inputs[1])
        return [int(a) for a in torch.as_tensor(given).flatten()]

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        axes = self.axes()
        ndim = x.ndim + len(axes)
        for axis in sorted(a % ndim for a in axes):
            x = x.unsqueeze(axis)
        return x

    def interval_propagate(self, *v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.forward(v[0][0]), self.forward(v[0][1])

    def bound_backward(self, last_lA: Any, last_uA: Any, x: Bound, *rest: Bound, **_: Any):
        before = [None if A is None else A.reshape(*A.shape[:2], *x.output_shape[1:]) for A in (last_lA, last_uA)]
        return [tuple(before)] + [(None, None)] * len(rest), 0, 0

    def bound_forward(self, dim_in: int, x: LinearBound, *_: LinearBound) -> LinearBound:
        def wider(t: Tensor) -> Tensor:
            return t.reshape(*t.shape[: t.ndim - len(self.input_shape) + 1], *self.output_shape[1:])

        return LinearBound(*(wider(t) for t in (x.lw, x.lb, x.uw, x.ub)))


def one_axis(attr: Any, inputs: list) -> bool:
    """Whether auto_LiRPA's own class knows these axes."""
    given = attr["axes"] if "axes" in attr else constant_value(inputs[1])
    return torch.as_tensor(given).numel() == 1
