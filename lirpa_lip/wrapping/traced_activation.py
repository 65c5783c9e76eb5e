"""auto_LiRPA's view of an elementwise activation it has no class for: forward, IBP, CROWN and α-CROWN, from its trait.

Which lines bound it is said in `lirpa_lip.activations.lines`; how they travel through auto_LiRPA's methods (dense
matrices, convolution patches, α variables), in `lirpa_lip.wrapping.relaxed_bound`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from auto_LiRPA.linear_bound import LinearBound
from torch import Tensor

from lirpa_lip.activations.base import Activation
from lirpa_lip.activations.lines import blend_three, relaxations
from lirpa_lip.activations.piecewise_linear import PiecewiseLinear
from lirpa_lip.activations.planes import Relaxation
from lirpa_lip.errors import DomainError, UnsupportedOperatorError
from lirpa_lip.network.emit import GraphBuilder, Traced, depends_on_input
from lirpa_lip.network.node import Node
from lirpa_lip.wrapping.floors import raised
from lirpa_lip.wrapping.relaxed_bound import RelaxedActivation

_WITH_A_DOMAIN = {"BoundSqrt", "BoundLog", "BoundReciprocal", "BoundPow"}

Adapter = Callable[[GraphBuilder, Traced], str]


class TracedActivation(RelaxedActivation):
    """Base of the classes `activation_class` makes; a mix of ½ is the line of least area, 0 and 1 favour the ends."""

    mixes_per_output = 2
    adapter: Adapter

    def activation_on(self, z: Tensor) -> Activation:
        """The record its adapter describes it by, for inputs like ``z``."""
        builder = GraphBuilder(z.dtype, z.device, getattr(self, "_model_dtype", None))
        builder.add(Node("input", "BoundInput", z.shape[1:]))
        traced = Traced(self.name or "", type(self).__name__, self, self.attr, self._parents(), z.shape[1:], builder)
        name = type(self).adapter(builder, traced)
        emitted = builder.nodes[name].activation
        return emitted if emitted is not None else PiecewiseLinear([0.0], [1.0, 1.0], 0.0)  # a clip without ends

    def _defined_on(self, lower: Tensor, upper: Tensor) -> Activation:
        """The record, once it is known to be defined on the interval.

        Raises:
            DomainError: it is not.
        """
        activation = self.activation_on(lower)
        reason = activation.outside(lower, upper)
        if reason:
            raise DomainError(self.name or "", type(self).__name__, reason)
        return activation

    def _parents(self) -> tuple[str | None, ...]:
        varying = [i for i, bound in enumerate(self.inputs[1:], start=1) if depends_on_input(bound)]
        if varying:
            reason = f"only its first input may depend on the network's input, and input {varying[0]} does"
            raise UnsupportedOperatorError(self.name or "", type(self).__name__, reason=reason)
        return ("input", *[None] * (len(self.inputs) - 1))

    def _bounds(self, x: Any) -> tuple[Tensor, Tensor]:
        lower, upper = super()._bounds(x)
        return raised(self.inputs[0], lower, upper) if type(self).__name__ in _WITH_A_DOMAIN else (lower, upper)

    def thresholds(self) -> tuple[Tensor, ...]:
        return ()  # its parameters are in the record

    def forward(self, z: Tensor, *parameters: Tensor) -> Tensor:
        return self.activation_on(z).value(z)

    def interval_propagate(self, *v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Exact: the activation's range on the interval, monotone or not."""
        lower, upper = v[0][0], v[0][1]
        return self._defined_on(lower, upper).interval(lower, upper)

    def default_mix(self, lower: Tensor, upper: Tensor, *thresholds: Tensor) -> list[Tensor]:
        return [torch.full_like(lower, 0.5)] * 2

    def relax(self, lower: Tensor, upper: Tensor, mix: list[Tensor], *thresholds: Tensor) -> list[Relaxation]:
        three = relaxations(self._defined_on(lower, upper), lower, upper)
        first, middle, last = three
        sides = (blend_three(first[side], middle[side], last[side], mix[side]) for side in (0, 1))
        return [Relaxation(*sides)]

    def bound_forward(self, dim_in: int, x: LinearBound, *_: LinearBound) -> LinearBound:
        lower, upper = self._bounds(x)
        (relaxation,) = self.relax(lower, upper, self._mix("_forward", lower, upper))
        sides = []
        for plane, own in ((relaxation.lower, 0), (relaxation.upper, 1)):
            rising, falling = plane.slopes[0].clamp(min=0), plane.slopes[0].clamp(max=0)
            (w, b), (other_w, other_b) = ((x.lw, x.lb), (x.uw, x.ub))[:: 1 - 2 * own]
            weight = None
            if w is not None:
                weight = rising.unsqueeze(1) * w + falling.unsqueeze(1) * other_w
            sides += [weight, rising * b + falling * other_b + plane.bias]
        return LinearBound(*sides)


def activation_class(name: str, adapter: Adapter) -> type[TracedActivation]:
    """The bound class of one operator; its name is the key of its adapter in the operator table."""
    return type(name, (TracedActivation,), {"adapter": staticmethod(adapter), "__doc__": adapter.__doc__})
