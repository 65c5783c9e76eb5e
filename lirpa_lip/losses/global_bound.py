"""The global bound: product of the layers' spectral norms, times the exact norm of w_j − w_y.

The bound of GloRo (Leino, Wang & Fredrikson, ICML 2021, arXiv 2102.08452), with no masks: the baseline that local
bounds have to beat. It costs a few products with one vector per layer, whatever the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lirpa_lip.errors import NonFiniteError, UnknownMethodError
from lirpa_lip.losses.bound import BoundOutput
from lirpa_lip.losses.stages import Stage, stages_of
from lirpa_lip.losses.warm_norm import WarmStarts
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.ranges import check_delta

CERTIFICATES = ("estimate", "auto", "deterministic", "probabilistic")


class GlobalBound(nn.Module):
    """L_{b,j} = ‖(w_j − w_y) · last map‖ · Π σ(stage), the same on every ball.

    Args:
        model: sequential network, see ``stages.stages_of``.
        sample: an input, for its shape, dtype and device.
        certificate: ``"estimate"`` for training: power iterations from a vector per layer that is kept from
            step to step, an underestimate by nature. ``"auto"``, ``"deterministic"`` or ``"probabilistic"``, as in
            ``masked_spectral_norm``, for certificates: norms are computed on the first call and kept, so the weights
            must not change afterwards. After that call, ``certificate`` is the kind that was reached.
        iterations: power iterations per layer and call (estimate only).
        delta: failure probability of the whole product (probabilistic only).

    Raises:
        UnknownMethodError: no such certificate.
        ConfigError: delta does not lie strictly between 0 and 1.
    """

    def __init__(
        self, model: nn.Module, sample: Tensor, certificate: str = "estimate", iterations: int = 2, delta: float = 1e-6
    ) -> None:
        super().__init__()
        if certificate not in CERTIFICATES:
            raise UnknownMethodError(certificate, CERTIFICATES, kind="certificate")
        check_delta(delta)
        self.certificate, self.iterations, self.delta = certificate, iterations, delta
        self._model = (model,)  # in a tuple, so that its parameters are not registered twice
        self._stages = stages_of(model, sample)
        self._kept: Tensor | None = None
        self.starts = WarmStarts().eval()
        if certificate == "estimate":
            self.product()  # makes the start vectors
        self.starts.train()

    @property
    def failure_probability(self) -> float:
        """0, δ of the whole product, or NaN for an estimate."""
        return {"estimate": math.nan, "deterministic": 0.0}.get(self.certificate, self.delta)

    def forward(self, x: Tensor, eps: float | Tensor, labels: Tensor | None = None) -> BoundOutput:
        """See ``LipschitzBound``; ``eps`` is not used, the bound holds everywhere."""
        logits = self._model[0](x)
        labels = logits.argmax(dim=1) if labels is None else labels
        return BoundOutput(logits, self.product() * pair_norms(self._stages[-1])[labels])

    def product(self) -> Tensor:
        """Π of the norms of all stages but the last, a scalar."""
        if self.certificate == "estimate":
            maps = [stage.linear_map() for stage in self._stages[:-1]]
            return _product([self.starts.norm(i, m, iterations=self.iterations) for i, m in enumerate(maps)])
        if self._kept is None:
            self._kept = _product(self._certified_norms())
            if not bool(torch.isfinite(self._kept)):
                raise NonFiniteError("the global Lipschitz bound")
        return self._kept

    def _certified_norms(self) -> list[Tensor]:
        hidden = self._stages[:-1]
        delta = self.delta / max(1, len(hidden))
        results = [
            masked_spectral_norm(stage.linear_map().detach(), certificate=self.certificate, delta=delta)
            for stage in hidden
        ]
        probabilistic = any(result.certificate == "probabilistic" for result in results)
        self.certificate = "probabilistic" if probabilistic else "deterministic"
        return [result.upper for result in results]


def pair_norms(stage: Stage) -> Tensor:
    """‖row_j − row_y‖ of the last stage's map for all pairs: (classes, classes), differentiable, 0 on the diagonal."""
    linear = stage.linear_map()
    classes = linear.out_shape.numel()
    identity = torch.eye(classes, dtype=linear.dtype, device=linear.device)
    rows = linear.adjoint(identity).flatten(1)
    distances = torch.cdist(rows.unsqueeze(0), rows.unsqueeze(0), compute_mode="donot_use_mm_for_euclid_dist")
    return distances[0]


def _product(norms: list[Tensor]) -> Tensor:
    return torch.stack([norm.reshape(()) for norm in norms]).prod() if norms else torch.ones(())
