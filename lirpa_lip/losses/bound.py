"""The seam between a Lipschitz bound and a loss: what a bound returns, and the bounds known by name.

A loss asks a bound for logits and pair-wise Lipschitz constants and knows nothing of how they came about; so one
loss trains against the global norm product, the local product and the composed bound alike.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lirpa_lip.methods import current_name

BOUNDS: dict[str, str] = {
    "global-product": "lirpa_lip.losses.global_bound:GlobalBound",
    "local-product": "lirpa_lip.losses.local_bound:local_product_bound",
    "local-lip": "lirpa_lip.losses.local_bound:local_lip_bound",
}
"""Name -> ``module:factory``. A new bound is one file, one row of `lirpa_lip.methods`, and one row here."""


class ActivationInterval(NamedTuple):
    """Interval of one elementwise activation's input over the region, and where the activation is constant.

    Attributes:
        lower, upper: ends of the interval, ``(batch, *shape)``.
        constant_below, constant_above: the activation is constant where the whole interval lies below, or above, these
            thresholds, tensors that broadcast, or numbers; None for nowhere.
    """

    lower: Tensor
    upper: Tensor
    constant_below: Tensor | float | None = None
    constant_above: Tensor | float | None = None

    def varies(self) -> Tensor:
        """0/1 as booleans: which entries are not constant on their interval."""
        found = torch.ones_like(self.lower, dtype=torch.bool)
        if self.constant_below is not None:
            found &= self.upper > self.constant_below
        if self.constant_above is not None:
            found &= self.lower < self.constant_above
        return found


class FeatureRegion(NamedTuple):
    """Where the input of the last linear layer can lie: a ball around ``center``, intersected with a box.

    Attributes:
        center, lower, upper: (batch, features).
        radius: (batch,).
        weight: (classes, features), of that layer.
    """

    center: Tensor
    radius: Tensor
    lower: Tensor
    upper: Tensor
    weight: Tensor


class BoundOutput(NamedTuple):
    """What a bound says of a batch, for inputs x' in the ball around each sample x.

    Attributes:
        logits: (batch, classes) of the unperturbed input.
        pair_lipschitz: (batch, classes); entry [b, j] bounds how far logit_y − logit_j moves over ‖x' − x‖₂, on the
            ball around sample b, where y is its label. Zero at j = y.
        intervals: intervals of the activations' inputs, for the sparsity loss; empty where the bound has none.
        region: the set that BCP maximises over; None where the bound has none.
    """

    logits: Tensor
    pair_lipschitz: Tensor
    intervals: tuple[ActivationInterval, ...] = ()
    region: FeatureRegion | None = None


@runtime_checkable
class LipschitzBound(Protocol):
    """What a loss needs of a bound: an object that knows its model, and is called ``bound(x, eps, labels)``.

    It returns a `BoundOutput` for the balls ‖x' − x‖₂ ≤ eps around inputs ``(batch, *shape)``, differentiable in the
    model's parameters. `make_bound` makes those that have a name; any function of this signature is one too.
    """

    def __call__(self, x: Tensor, eps: float | Tensor, labels: Tensor | None = None) -> BoundOutput:
        """Bounds the model on the balls ‖x' − x‖₂ ≤ eps.

        Args:
            x: ``(batch, *input shape)``.
            eps: radius of the ball, a number or one per sample.
            labels: (batch,) integer classes y; by default the predicted ones.
        """
        ...


def make_bound(name: str, model: nn.Module, sample: Tensor, **options: Any) -> LipschitzBound:
    """Builds a bound for a model, to be called in every step: ``bound(x, eps, labels)`` gives a `BoundOutput`.

    Args:
        name: ``"global-product"``, ``"local-product"`` or ``"local-lip"`` (the keys of ``BOUNDS``).
        model: from ``(batch, *shape)`` to logits ``(batch, classes)``; its weights are read anew in every call.
        sample: an input of any batch size, for its shape and device.
        options: of the bound; ``certificate="deterministic"`` gives certified norms in place of estimates.

    Raises:
        UnknownMethodError: no such bound.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> output = make_bound("global-product", model, x)(x, 0.1, y)
        >>> [round(v, 3) for v in output.pair_lipschitz[0].tolist()]  # ‖e₀ − e₁‖ = √2
        [0.0, 1.414]
    """
    module, attribute = BOUNDS[current_name(name, "train")].split(":")
    bound: LipschitzBound = getattr(import_module(module), attribute)(model, sample, **options)
    return bound
