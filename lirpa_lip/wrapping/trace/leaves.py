"""auto_LiRPA's view of a folded value: a leaf like a buffer, computed anew whenever it is read."""

from __future__ import annotations

from typing import Any

import torch
from auto_LiRPA.bound_ops import BoundBuffers, BoundParams
from torch import Tensor

from lirpa_lip.wrapping.trace.fold import Folded


class BoundFolded(BoundBuffers, BoundParams):
    """A value that parameters alone determine; see `lirpa_lip.wrapping.trace.fold`.

    It is made as a buffer, and a parameter to those that ask: batch norm takes its weights from nothing else.
    """

    folded: Folded
    precision: Tensor

    @property
    def buffer(self) -> Tensor:
        """The value now, in the precision of the model or the wider one that all of a module is taken to."""
        value = self.folded.value()
        return value.to(torch.promote_types(value.dtype, self.precision.dtype))

    @property
    def param(self) -> Tensor:
        """What auto_LiRPA's batch norm and convolution read of a weight."""
        return self.buffer

    def forward(self) -> Tensor:
        return self.buffer


def attach(bounded: Any, folded: list[Folded]) -> None:
    """Gives the leaves of a converted model their computations, in place of the values they had when traced."""
    by_name = {f.name: f for f in folded}
    for node in bounded._modules.values():
        found = by_name.get(getattr(node, "ori_name", ""))
        if found is not None:
            del node._buffers["buffer"]  # or it would be saved and loaded with the parameters
            node.__class__ = BoundFolded
            node.__dict__.update(folded=found, precision=torch.zeros((), dtype=found.value().dtype))


def perturbed(parameter: Tensor) -> bool:
    """Whether auto_LiRPA is to perturb a parameter itself."""
    return isinstance(parameter, torch.Tensor) and getattr(parameter, "ptb", None) is not None
