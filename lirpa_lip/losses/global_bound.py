"""The global bound: product of the layers' norms on the whole input space, times the norm of w_j − w_y.

The bound of GloRo (Leino, Wang & Fredrikson, ICML 2021, arXiv 2102.08452), with no masks: the baseline that local
bounds have to beat. It costs a few products with one vector per layer, whatever the batch. The layers are those of
`lirpa_lip.local.baselines`, with estimated norms in place of bounds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lirpa_lip.config import CERTIFICATES, LocalLipConfig
from lirpa_lip.errors import NonFiniteError, UnknownMethodError
from lirpa_lip.local.baselines import global_layers
from lirpa_lip.losses.bound import BoundOutput
from lirpa_lip.losses.pairs import pair_distances
from lirpa_lip.losses.reading import ModelReader
from lirpa_lip.losses.warm_norm import WarmNorms, WarmStarts
from lirpa_lip.ranges import check_delta

if TYPE_CHECKING:
    from lirpa_lip.comparison import Global


class GlobalBound(nn.Module):
    """L_{b,j} = ‖(w_j − w_y) · last map‖ · Π σ(layer), the same on every ball.

    Args:
        model: a classifier, read straight where it is sequential, else on its trace.
        sample: an input, for its shape, dtype and device.
        certificate: ``"estimate"`` for training: power iterations from a vector per layer that is kept from
            step to step, an underestimate by nature. ``"auto"``, ``"deterministic"`` or ``"probabilistic"``, as in
            ``masked_spectral_norm``, for certificates: norms are computed on the first call, in float64, and kept, so
            the weights must not change afterwards. After that call, ``certificate`` is the kind that was reached.
        iterations: power iterations per layer and call (estimate only).
        delta: failure probability of the whole product (probabilistic only).

    Raises:
        UnknownMethodError: no such certificate.
        ConfigError: delta does not lie strictly between 0 and 1.
    """

    _certified: Global | None

    def __init__(
        self, model: nn.Module, sample: Tensor, certificate: str = "estimate", iterations: int = 2, delta: float = 1e-6
    ) -> None:
        super().__init__()
        if certificate not in CERTIFICATES:
            raise UnknownMethodError(certificate, CERTIFICATES, kind="certificate")
        check_delta(delta)
        self.certificate, self.iterations, self.delta = certificate, iterations, delta
        self._model = (model,)  # in a tuple, so that its parameters are not registered twice
        self.starts = WarmStarts().eval()
        self._is_estimate = certificate == "estimate"
        if self._is_estimate:
            self.read = ModelReader(model, sample)
            with torch.no_grad():
                self._estimate()  # makes the start vectors
        else:
            self._sample, self._certified = sample[:1], None
        self.starts.train()

    @property
    def failure_probability(self) -> float:
        """0, δ of the whole product, or NaN for an estimate."""
        return {"estimate": math.nan, "deterministic": 0.0}.get(self.certificate, self.delta)

    def forward(self, x: Tensor, eps: float | Tensor, labels: Tensor | None = None) -> BoundOutput:
        """See ``LipschitzBound``; ``eps`` is not used, the bound holds everywhere."""
        logits = self._model[0](x)
        labels = logits.argmax(dim=1) if labels is None else labels
        pairs = self._estimate()[labels] if self._is_estimate else self._bounds(x, labels, logits.shape[1])
        return BoundOutput(logits, pairs)

    def _estimate(self) -> Tensor:
        """Of all pairs of classes, (classes, classes)."""
        graph = self.read()
        layers = global_layers(graph, WarmNorms(self.starts, self.iterations, shared=True), inner_folds=False)
        return pair_distances(graph, layers)

    @torch.no_grad()
    def _bounds(self, x: Tensor, labels: Tensor, classes: int) -> Tensor:
        certified = self._certified
        if certified is None:
            from lirpa_lip.comparison import Global  # imports auto_LiRPA

            kind: Any = self.certificate
            config = LocalLipConfig(certificate=kind, delta=self.delta, norm_tolerance=1e-3)
            certified = self._certified = Global(self._model[0], self._sample, config)
            self.certificate = certified.norm.worth.kind
        identity = torch.eye(classes, dtype=x.dtype, device=x.device)
        found = certified.lipschitz(x, identity[labels].unsqueeze(1) - identity, 0.0)
        assert found is not None
        if not bool(torch.isfinite(found.upper).all()):
            raise NonFiniteError("the global Lipschitz bound")
        return found.upper
