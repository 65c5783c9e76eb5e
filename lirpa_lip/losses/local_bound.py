"""The local product bound for training: masked norms of a sequential network, at a small multiple of its forward pass.

    L_{b,j} = ‖(w_j − w_y) S‖ · Π_k ‖S_k W_k S_{k−1}‖,      S the 0/1 mask of neurons that can vary around sample b

(Huang et al., NeurIPS 2021, arXiv 2111.01395, §3). Masks come from interval arithmetic, intersected with the ball of
the local radius. Norms are estimates (see ``warm_norm``). Certificates come from ``lirpa_lip.BoundedModule``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lirpa_lip.errors import ConfigError
from lirpa_lip.losses.activations import intervals_of, masks_of
from lirpa_lip.losses.bound import BoundOutput, FeatureRegion
from lirpa_lip.losses.stages import Stage, stages_of
from lirpa_lip.losses.warm_norm import WarmStarts
from lirpa_lip.norms.linear_map import LinearMap


class SweptLayer(NamedTuple):
    """An activation with its input's interval and value at the centre, (batch, *shape), and the map before it."""

    activation: nn.Module
    lower: Tensor
    upper: Tensor
    centre: Tensor
    linear: LinearMap


class Swept(NamedTuple):
    """The features' centre and interval, their local rate (batch,), the mask of their columns, and all activations."""

    centre: Tensor
    lower: Tensor
    upper: Tensor
    rate: Tensor
    columns: Tensor | None
    layers: list[SweptLayer]


class SequentialLocalLip(nn.Module):
    """Local product bound of a sequential network, for training (``certificate`` is ``"estimate"``).

    Args:
        model: sequential network, see ``stages.stages_of``.
        sample: an input, for its shape, dtype and device.
        iterations: power iterations per layer and call.
        interval_gradients: whether intervals carry gradients, for BCP's box and the sparsity loss. Masks have none, so
            without those it is wasted work.
        image_box: (low, high) of possible pixels, to be intersected with the ball; None for none.
    """

    certificate = "estimate"

    def __init__(
        self,
        model: nn.Module,
        sample: Tensor,
        iterations: int = 2,
        interval_gradients: bool = False,
        image_box: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ConfigError(f"iterations={iterations} must be at least 1.")
        self.iterations, self.interval_gradients, self.image_box = iterations, interval_gradients, image_box
        self._model = (model,)  # in a tuple, so that its parameters are not registered twice
        self._stages = stages_of(model, sample)
        self.starts = WarmStarts().eval()
        with torch.no_grad():
            self(sample[:1], 0.0)  # makes the start vectors
        self.starts.train()

    def forward(self, x: Tensor, eps: float | Tensor, labels: Tensor | None = None) -> BoundOutput:
        """See ``LipschitzBound``."""
        radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x))
        swept = self._sweep(x, radius)
        logits = self._stages[-1].apply(swept.centre)
        labels = logits.argmax(dim=1) if labels is None else labels
        weight = _rows(self._stages[-1])
        pairs = self._pairs(swept, logits, weight, labels, radius)
        centre, lower, upper = (t.flatten(1) for t in (swept.centre, swept.lower, swept.upper))
        region = FeatureRegion(centre, radius * swept.rate, lower, upper, weight)
        found = [part for record in swept.layers for part in intervals_of(*record[:3])]
        return BoundOutput(logits, pairs, tuple(found), region)

    def _pairs(self, swept: Swept, logits: Tensor, weight: Tensor, labels: Tensor, radius: Tensor) -> Tensor:
        """L of every pair, (batch, classes)."""
        columns = None if swept.columns is None else swept.columns.flatten(1)
        return swept.rate.unsqueeze(1) * masked_pair_norms(weight, labels, columns)

    def _sweep(self, x: Tensor, radius: Tensor) -> Swept:
        """One pass from the input to the features: centre, intervals, masks, and the product of norms so far."""
        rate, columns = torch.ones_like(radius), None
        centre, lower, upper = x, *self._input_interval(x, radius)
        layers = []
        for index, stage in enumerate(self._stages[:-1]):
            assert stage.activation is not None
            linear, centre = stage.linear_map(), stage.apply(centre)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.interval_gradients):
                lower, upper = self._interval(index, linear, lower, upper, centre, radius * rate)
                layers.append(SweptLayer(stage.activation, lower, upper, centre, linear))
                rows, following = masks_of(stage.activation, lower, upper)
                lower, upper = stage.activation(lower), stage.activation(upper)
            rate = rate * self.starts.norm(index, linear, columns, rows, self.iterations)
            centre, columns = stage.activation(centre), following
        return Swept(centre, lower, upper, rate, columns, layers)

    def _input_interval(self, x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        reach = radius.reshape(-1, *[1] * (x.ndim - 1))
        lower, upper = x - reach, x + reach
        if self.image_box is not None:
            lower, upper = lower.clamp(min=self.image_box[0]), upper.clamp(max=self.image_box[1])
        return lower, upper

    def _interval(
        self, index: int, linear: LinearMap, lower: Tensor, upper: Tensor, centre: Tensor, radius: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of a pre-activation: centre ± ‖row‖ · local radius, intersected with interval arithmetic.

        On the bare input ball the former is the smaller: ‖row‖₂ ≤ ‖row‖₁.
        """
        reach = linear.row_norms() * radius.reshape(-1, *[1] * (centre.ndim - 1))
        low, high = centre - reach, centre + reach
        if index == 0 and self.image_box is None:
            return low, high
        middle = self._stages[index].apply((lower + upper) / 2)
        width = linear.abs().forward((upper - lower) / 2)
        return torch.maximum(middle - width, low), torch.minimum(middle + width, high)


def masked_pair_norms(weight: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """‖(w_j − w_y) S_b‖ for every sample and class, (batch, classes), in memory linear in the classes; 0 at j = y.

    Expands the square; a norm that cancels to rounding is taken as 0 there, with gradient 0.
    """
    own = weight[labels]
    if mask is None:
        squares = weight.square().sum(1) - 2 * own @ weight.mT + own.square().sum(1, keepdim=True)
    else:
        masked = own * mask.square()
        squares = mask.square() @ weight.square().mT - 2 * masked @ weight.mT + (masked * own).sum(1, keepdim=True)
    is_label = torch.arange(len(weight), device=weight.device) == labels.unsqueeze(1)
    positive = (squares > 0) & ~is_label
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def _rows(stage: Stage) -> Tensor:
    """The last stage's matrix (classes, inputs)."""
    linear = stage.linear_map()
    return linear.adjoint(torch.eye(linear.out_shape.numel(), dtype=linear.dtype, device=linear.device)).flatten(1)
