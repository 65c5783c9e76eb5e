"""The local product and composed bounds of any traced network, for training.

The same propagation as the certificates', with norms estimated from warm starts (``warm_norm``) in place of bounded.
Slower than ``SequentialLocalLip`` on a sequential network, but for every model auto_LiRPA can trace.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lirpa_lip.activations.piecewise_linear import PiecewiseLinear
from lirpa_lip.bounded_module import BoundedModule
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.propagate import propagate
from lirpa_lip.local.rows import row_lipschitz
from lirpa_lip.losses.bound import ActivationInterval, BoundOutput
from lirpa_lip.losses.warm_norm import WarmStarts
from lirpa_lip.network.graph import build_graph
from lirpa_lip.norms.linear_map import LinearMap
from lirpa_lip.regions.region import Region
from lirpa_lip.trust.live import refresh


class GraphLocalLip(nn.Module):
    """Local bound of any traced network, for training (``certificate`` is ``"estimate"``).

    Args:
        model: a classifier that auto_LiRPA can trace.
        sample: an input, for its shape, dtype and device.
        bound: ``"product"``, ``"composed"`` or ``"auto"`` (the smaller of the two), as in ``LocalLipConfig``.
        iterations: power iterations per norm and call.
        interval_gradients: accepted for the sake of one signature; intervals always carry gradients here.
        image_box: (low, high) of possible pixels; None for none.
    """

    certificate = "estimate"

    def __init__(
        self,
        model: nn.Module,
        sample: Tensor,
        bound: str = "product",
        iterations: int = 2,
        interval_gradients: bool = True,
        image_box: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.config = LocalLipConfig(bound=bound, certificate="estimate", anchored=False)  # type: ignore[arg-type]
        self.iterations, self.image_box = iterations, image_box
        self._model, self._bounded = (model,), (BoundedModule(model, torch.zeros_like(sample[:1])),)
        self.starts = WarmStarts().eval()
        with torch.no_grad():
            self(sample[:1], 0.1)  # makes the start vectors
        self.starts.train()

    def forward(self, x: Tensor, eps: float | Tensor, labels: Tensor | None = None) -> BoundOutput:
        """See ``LipschitzBound``."""
        logits = self._model[0](x)
        labels = logits.argmax(dim=1) if labels is None else labels
        refresh(self._bounded[0])
        graph = build_graph(self._bounded[0])  # anew, since it may hold values computed from the weights
        low, high = self.image_box or (None, None)
        region = Region.make(x, eps, low, high)
        norm = _WarmOracle(self.starts, self.iterations)
        layers = propagate(graph, region, self.config, norm, anchored=False)
        identity = torch.eye(logits.shape[1], dtype=x.dtype, device=x.device)
        rows = identity[labels].unsqueeze(1) - identity
        return BoundOutput(logits, row_lipschitz(graph, rows, layers, self.config), _constant_parts(layers))


class _WarmOracle:
    """Answers the propagation's calls in the order they come, call n from start vector n."""

    def __init__(self, starts: WarmStarts, iterations: int) -> None:
        self.starts, self.iterations, self.calls = starts, iterations, 0

    def __call__(self, map_: LinearMap, mask_in: Tensor | None = None, mask_out: Tensor | None = None) -> Tensor:
        index, self.calls = self.calls, self.calls + 1
        return self.starts.norm(index, map_, mask_in, mask_out, self.iterations)


def _constant_parts(layers: Layers) -> tuple[ActivationInterval, ...]:
    """Intervals of the piecewise linear activations that are constant at an end."""
    found = []
    for layer in layers.values():
        if isinstance(layer.activation, PiecewiseLinear):
            slopes, knots = layer.activation.slopes, layer.activation.knots
            below, above = (knots[end] if _is_zero(slopes[end]) else None for end in (0, -1))
            if below is not None or above is not None:
                found.append(ActivationInterval(layer.lower, layer.upper, below, above))
    return tuple(found)


def _is_zero(slope: Tensor | float) -> bool:
    return bool((torch.as_tensor(slope) == 0).all())
