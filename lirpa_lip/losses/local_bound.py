"""The local bounds for training, and with certified norms: one pass, whose norms are estimates or bounds.

``"local-product"`` is the product of masked norms (Huang et al., NeurIPS 2021, arXiv 2111.01395, §3),
``"local-lip"`` the smaller of that and the composed bound (`lirpa_lip.local`). While training, the product bounds all
pairs of classes, with the composed rate at the last activations; the rivals that come closest under it are pulled back
through the network one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lirpa_lip.activations.base import Activation
from lirpa_lip.config import CERTIFICATES, LocalLipConfig
from lirpa_lip.errors import ConfigError, UnknownMethodError
from lirpa_lip.local.composed import stacked_map
from lirpa_lip.local.layers import Layers
from lirpa_lip.local.training_pass import HeldLayer, feature_node, training_pass
from lirpa_lip.losses.bound import ActivationInterval, BoundOutput, FeatureRegion
from lirpa_lip.losses.pairs import all_pairs, head_rows
from lirpa_lip.losses.reading import ModelReader
from lirpa_lip.losses.warm_norm import WarmNorms, WarmStarts, joint_rate
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.regions.region import Region


class LocalBound(nn.Module):
    """Local bound of a classifier, by default for training.

    Args:
        model: read straight where it is sequential (`SequentialReader`), else on its trace.
        sample: an input, for its shape, dtype and device.
        bound: ``"product"``, or ``"auto"`` for the smaller of the composed and the product bound.
        certificate: ``"estimate"`` for training: power iterations from kept vectors, underestimates by nature.
            ``"auto"``, ``"deterministic"`` or ``"probabilistic"`` for what `lirpa_lip.certify` finds with such norms:
            bounds of how fast each pair of logits moves away from its value at the sample, without a region of
            features. They take much longer.
        iterations: power iterations per norm and call (estimate only).
        refinements: fixed-point steps per composed norm and call (estimate only).
        rivals: pairs per sample that are pulled back one by one (estimate only; certificates pull all of them back).
        interval_gradients: whether intervals carry gradients, for BCP's box and the sparsity loss. The masks of norms
            have none, so without those it is wasted work.
        image_box: (low, high) of possible pixels, to be intersected with the ball; None for none.
        delta: failure probability of one sample's certificate (probabilistic only).

    Raises:
        UnknownMethodError: no such bound or certificate.
        ConfigError: counts that make no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        sample: Tensor,
        bound: Literal["product", "auto"] = "product",
        *,
        certificate: Literal["estimate", "auto", "deterministic", "probabilistic"] = "estimate",
        iterations: int = 2,
        refinements: int = 1,
        rivals: int = 2,
        interval_gradients: bool = False,
        image_box: tuple[float, float] | None = None,
        delta: float = 1e-6,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ConfigError(f"iterations={iterations} must be at least 1.")
        if refinements < 0 or rivals < 1:
            raise ConfigError(f"refinements={refinements} must not be negative, and rivals={rivals} at least 1.")
        if certificate not in CERTIFICATES:
            raise UnknownMethodError(certificate, CERTIFICATES, kind="certificate")
        self.config = LocalLipConfig(bound=bound, certificate=certificate, image_box=image_box, delta=delta)
        self.certificate: str = certificate
        self.iterations, self.refinements, self.rivals = iterations, refinements, rivals
        self.interval_gradients = interval_gradients
        self._model = (model,)  # in a tuple, so that its parameters are not registered twice
        self.starts = WarmStarts().eval()
        self.failure_probability = math.nan
        if self.config.is_estimate:
            self.read = ModelReader(model, sample)
            with torch.no_grad():
                self(sample[:1], 0.0)  # makes the start vectors
        self.starts.train()

    def forward(self, x: Tensor, eps: float | Tensor, labels: Tensor | None = None) -> BoundOutput:
        """See ``LipschitzBound``."""
        if not self.config.is_estimate:
            return self._certified(x, eps, labels)
        graph = self.read()
        region = Region.make(x, eps, *(self.config.image_box or (None, None)))
        norms = WarmNorms(self.starts, self.iterations, self.refinements)
        layers, values = training_pass(graph, region, self.config, norms, self.interval_gradients)
        logits = values[graph.output].flatten(1)
        labels = logits.argmax(dim=1) if labels is None else labels
        pairs = all_pairs(graph, layers, labels)
        if self.config.bound != "product":
            pairs = self._rivals(graph, layers, pairs, (logits, labels, region.eps))
        return BoundOutput(logits, pairs, constant_intervals(layers), _features(graph, layers, values, region))

    def _rivals(
        self, graph: NetworkGraph, layers: Layers, pairs: Tensor, sample: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """``pairs`` with the rivals that come closest under them bounded one by one.

        Args:
            sample: logits, labels and radii.
        """
        logits, labels, eps = sample
        count = min(self.rivals, logits.shape[1] - 1)
        with torch.no_grad():
            threat = (logits + eps.unsqueeze(1) * pairs).scatter(1, labels[:, None], -torch.inf)
            chosen = threat.topk(count, dim=1).indices
            identity = torch.eye(logits.shape[1], dtype=graph.dtype, device=graph.device)
        map_, rates = stacked_map(graph, graph.output, None, layers, len(eps))
        rows = (identity[labels].unsqueeze(1) - identity[chosen]).reshape(len(eps), count, *graph[graph.output].shape)
        found = torch.stack([joint_rate(map_, rows[:, k], rates) for k in range(count)], dim=1)
        return pairs.scatter(1, chosen, torch.minimum(found, pairs.gather(1, chosen)))

    def _certified(self, x: Tensor, eps: float | Tensor, labels: Tensor | None) -> BoundOutput:
        """The same from a pass whose norms are bounds: float64, checked against the model, rounded outward."""
        from lirpa_lip.losses.certified import certified_pairs  # imports auto_LiRPA

        logits = self._model[0](x)
        labels = logits.argmax(dim=1) if labels is None else labels
        found = certified_pairs(self._model[0], x, eps, labels, self.config)
        self.certificate, self.failure_probability = found.certificate, found.failure_probability
        return BoundOutput(logits, found.pairs, constant_intervals(found.layers))


def constant_intervals(layers: Layers) -> tuple[ActivationInterval, ...]:
    """Intervals of all activations that are constant somewhere, and where."""
    return tuple(p for layer in layers.values() for p in parts_of(layer.activation, layer.lower, layer.upper))


def parts_of(activation: Activation, lower: Tensor, upper: Tensor) -> list[ActivationInterval]:
    """The interval of an activation's input, part by part of its channels that are constant somewhere."""
    return [
        ActivationInterval(lower[:, part.channels], upper[:, part.channels], part.below, part.above)
        for part in activation.constant_parts()
    ]


def _features(
    graph: NetworkGraph, layers: Layers, values: Mapping[str, Tensor], region: Region
) -> FeatureRegion | None:
    """Ball and box of the values that the logits are a linear function of, where these are of one layer."""
    found = feature_node(graph)
    if found is None:
        return None
    name, layer = found[0], layers[found[1]]
    assert isinstance(layer, HeldLayer)
    radius = region.eps * layer.live_rate * layer.peak
    centre, lower, upper = (t.flatten(1) for t in (values[name], *layers.intervals[name]))
    return FeatureRegion(centre, radius, lower, upper, head_rows(graph, name))


def local_product_bound(model: nn.Module, sample: Tensor, **options: Any) -> LocalBound:
    """``"local-product"``, see `LocalBound`."""
    return LocalBound(model, sample, bound="product", **options)


def local_lip_bound(model: nn.Module, sample: Tensor, **options: Any) -> LocalBound:
    """``"local-lip"``, see `LocalBound`."""
    return LocalBound(model, sample, bound="auto", **options)
