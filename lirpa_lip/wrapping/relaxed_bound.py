"""What the auto_LiRPA bound classes of this package share: how planes are carried through auto_LiRPA's methods.

A subclass says what its planes are (:meth:`RelaxedActivation.relax`), as functions of pre-activation bounds, thresholds
and mixes in [0, 1]. This class splits the coefficient matrices along the channels, multiplies them by the planes (as
matrices or as convolution patches), and keeps the mixes as the variables that alpha-CROWN optimises.

Both auto_LiRPA 0.3 and 0.7 are served. They differ, here, in the names of two hooks and in which arguments reach
``bound_backward``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from auto_LiRPA.bound_ops import Bound, BoundOptimizableActivation
from auto_LiRPA.linear_bound import LinearBound
from torch import Tensor

from lirpa_lip.activations.planes import Relaxation
from lirpa_lip.nn.functional import broadcast_threshold
from lirpa_lip.wrapping.coefficients import multiply, select_rows

# 0.7 asserts that an activation before a convolution in patches mode has told its patch size; 0.3, that only ReLU has.
_TELLS_PATCH_SIZE = hasattr(BoundOptimizableActivation, "_init_opt_parameters_impl")


class RelaxedActivation(BoundOptimizableActivation):
    """An activation, non-decreasing in its inputs, bounded by the planes of :meth:`relax`.

    Its channels (axis 1 of the pre-activation) form ``inputs_per_output`` groups; outputs group g, neuron i, is a
    function of neuron i of every group. Inputs of the node: the pre-activation, then the raw threshold parameters.
    """

    inputs_per_output = 1
    mixes_per_output = 2
    knows_patches = True
    # Most mix variables per sample and later layer (float32: 16 MB a sample); beyond it, neurons of that layer share
    # them: by channel, or all. Sharing costs tightness, never validity.
    max_alpha_per_sample = 2**22
    alpha_batch_dim = 2  # read by 0.3

    def __init__(self, attr: Any = None, inputs: Any = None, output_index: int = 0, options: Any = None) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.alpha_batch_dim = RelaxedActivation.alpha_batch_dim
        self.requires_input_bounds = [0]
        self.alpha: OrderedDict[str, Tensor] = OrderedDict()
        self._spec_shapes: dict[str, tuple[int, ...]] = {}

    # ---- what a subclass says -------------------------------------------------------------------------------------
    def effective(self, *raw: Tensor) -> tuple[Tensor, ...]:
        """The thresholds that enter the formula, from the stored ones."""
        return raw

    def default_mix(self, lower: Tensor, upper: Tensor, *thresholds: Tensor) -> list[Tensor]:
        """Mixes of plain CROWN: ``mixes_per_output`` tensors (batch, *group) for each output group in turn."""
        raise NotImplementedError

    def relax(self, lower: Tensor, upper: Tensor, mix: list[Tensor], *thresholds: Tensor) -> list[Relaxation]:
        """One relaxation per output group; slopes ≥ 0, one per input group, broadcasting to (specs, batch, *group)."""
        raise NotImplementedError

    # ---- values and intervals -------------------------------------------------------------------------------------
    def thresholds(self) -> tuple[Tensor, ...]:
        """Effective thresholds, differentiable, of shape (1, *group) or (1, C, 1, …); () where there are none.

        One, θ ≥ 0, for clipped ReLU; (a, b), each for half the channels, for clipped MaxMin.
        """
        shape = (1, *self.output_shape[1:])
        like = torch.empty(()).expand(1, shape[1] // self.inputs_per_output, *shape[2:])
        raw = [_value(node) for node in self.inputs[1:]]
        return tuple(broadcast_threshold(t, like)[None] for t in self.effective(*raw))

    def interval_propagate(self, *v: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Exact: the activation is non-decreasing in its input and in every threshold."""
        return self.forward(*(low for low, _ in v)), self.forward(*(high for _, high in v))

    def _bounds(self, x: Any) -> tuple[Tensor, Tensor]:
        """Pre-activation bounds in order; an unknown (NaN) one is infinite."""
        inf = math.inf
        lower = torch.nan_to_num(x.lower, nan=-inf, posinf=inf, neginf=-inf)
        upper = torch.nan_to_num(x.upper, nan=inf, posinf=inf, neginf=-inf)
        return torch.minimum(lower, upper), torch.maximum(lower, upper)

    # ---- forward mode ---------------------------------------------------------------------------------------------
    def bound_forward(self, dim_in: int, x: LinearBound, *_: LinearBound) -> LinearBound:
        lower, upper = self._bounds(x)
        relaxations = self.relax(lower, upper, self._mix("_forward", lower, upper), *self.thresholds())
        sides = []
        for side, weight, bias in ((0, x.lw, x.lb), (1, x.uw, x.ub)):
            planes = [relaxation[side] for relaxation in relaxations]
            biases = bias.chunk(self.inputs_per_output, dim=1)
            new_bias = torch.cat([_combine(plane.slopes, biases) + plane.bias for plane in planes], dim=1)
            new_weight = None
            if weight is not None:
                weights = weight.chunk(self.inputs_per_output, dim=2)
                slopes = [[s.unsqueeze(1) for s in plane.slopes] for plane in planes]
                new_weight = torch.cat([_combine(s, weights) for s in slopes], dim=2)
            sides += [new_weight, new_bias]
        return LinearBound(*sides)

    # ---- backward mode --------------------------------------------------------------------------------------------
    def bound_backward(
        self,
        last_lA: Any,
        last_uA: Any,
        x: Bound,
        *_: Bound,
        start_node: Any = None,
        unstable_idx: Any = None,
        **kwargs: Any,
    ):
        lower, upper = self._bounds(x)
        thresholds = self.thresholds()
        name = start_node.name if start_node is not None else ""
        tell_patch_size(self, start_node, lower.shape[0])

        def one_side(A: Any, side: int):
            if A is None:
                return None, 0
            mix = self._mix(name, lower, upper, side, A, unstable_idx)
            relaxations = self.relax(lower, upper, mix, *thresholds)
            return multiply(A, relaxations, side, self.inputs_per_output)

        lA, lower_bias = one_side(last_lA, 0)
        uA, upper_bias = one_side(last_uA, 1)
        return [(lA, uA)] + [(None, None)] * (len(self.inputs) - 1), lower_bias, upper_bias

    # ---- the variables of alpha-CROWN -----------------------------------------------------------------------------
    def init_opt_parameters(self, start_nodes: Any) -> None:
        """Creates the mixes, at their plain CROWN values, for each later layer that is bounded through this one.

        ``alpha[name]``: (2 sides, specs or channels or 1, batch, mixes, *group).
        """
        x = self.inputs[0]
        lower, upper = (bound.detach() for bound in self._bounds(x))
        thresholds = [t.detach() for t in self.thresholds()]
        start = torch.stack(self.default_mix(lower, upper, *thresholds), dim=1)
        self.alpha = OrderedDict()
        for name, size, *_ in start_nodes:
            if name in self.patch_size:
                size = [self.patch_size[name][i] for i in (0, 2, 3)]
            shape = (size,) if isinstance(size, int) else tuple(size)
            self._spec_shapes[name] = shape
            room = self.max_alpha_per_sample // (2 * start[0].numel())
            groups = next((n for n in (math.prod(shape), shape[0]) if n <= room), 1)
            self.alpha[name] = start.expand(2, groups, *start.shape).clone().requires_grad_()

    def clip_alpha(self) -> None:
        """Back into [0, 1]; auto_LiRPA 0.7 calls it after every step."""
        for mixes in self.alpha.values():
            mixes.data.clamp_(0, 1)

    clip_alpha_ = clip_alpha  # its name in 0.3

    def _mix(
        self, name: str, lower: Tensor, upper: Tensor, side: int = 0, A: Any = None, unstable_idx: Any = None
    ) -> list[Tensor]:
        """Mixes for the rows of ``A``: the optimised ones if there are any for this start, else plain CROWN's."""
        alpha = self.alpha.get(name) if self.opt_stage in ("opt", "reuse") else None
        if alpha is None or alpha.shape[2] != lower.shape[0]:
            return self.default_mix(lower, upper, *self.thresholds())
        mixes = alpha[side]
        mixes = mixes[0] if A is None else select_rows(mixes, self._spec_shapes[name], A, unstable_idx)
        return list(mixes.unbind(dim=mixes.dim() - lower.dim()))


def tell_patch_size(node: Any, start_node: Any, batch: int) -> None:
    """What 0.7 wants to know of an activation before it creates variables for a convolution in patches mode."""
    if _TELLS_PATCH_SIZE and getattr(start_node, "mode", None) == "patches":
        channels, *space = start_node.output_shape[1:]
        node.patch_size[start_node.name] = [channels, batch, *space]


def _value(node: Bound) -> Tensor:
    """Value of a node that no input of the model reaches: a parameter, a buffer, or something computed from them."""
    return node.forward(*(_value(n) for n in node.inputs))


def _combine(slopes: Iterable[Tensor], inputs: Iterable[Tensor]) -> Tensor:
    products = [slope * value for slope, value in zip(slopes, inputs, strict=True)]
    return sum(products[1:], start=products[0])
