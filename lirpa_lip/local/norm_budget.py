"""The norms of one certificate: who calls the solver, splits delta and knows what the answers are worth."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lirpa_lip.config import LocalLipConfig
from lirpa_lip.local.linearised import StackedMap
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.draw import fresh_seed, next_seed
from lirpa_lip.norms.linear_map import LinearMap
from lirpa_lip.results import Certificate, Kind, weaker

#: Operations per sample for a deterministic norm where compositions, which mostly have none, enter too; and the
#: tolerance from which on these do not count: near norms by iteration are dear as well.
_WORK_LIMIT, _NEAR = 1e7, 1e-3
#: Applications of a map from which a norm is estimated from below.
_ESTIMATE_STEPS = 3


class Norm(Protocol):
    """Anything that bounds (or, in training, estimates) masked norms: ``(map, mask_in, mask_out) -> (batch,)``."""

    def __call__(self, map_: LinearMap, mask_in: Tensor | None = None, mask_out: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class JointNorm(Norm, Protocol):
    """One that also knows ``sup ‖M (t_j)_j‖`` over ``‖t_j‖ <= radii_j (batch, sources)``, without weights for them."""

    def joint(self, map_: StackedMap, radii: Tensor) -> Tensor: ...


class NormBudget:
    """Upper bounds of masked norms under one budget.

    Args:
        config: solver, certificate kind and the whole certificate's ``delta``.
        planned: how many norms the certificate may take; each gets ``delta / planned``, so that by the union bound
            all hold together with probability at least ``1 - delta``.

    Attributes:
        seed: that of every norm follows from it.
    """

    def __init__(self, config: LocalLipConfig, planned: int) -> None:
        self.config, self.planned = config, max(1, planned)
        self.seed = fresh_seed() if config.seed is None else config.seed
        self.calls = 0
        self._kind: Kind = "deterministic"

    def __call__(self, map_: LinearMap, mask_in: Tensor | None = None, mask_out: Tensor | None = None) -> Tensor:
        """``‖diag(mask_out) A diag(mask_in)‖₂``, ``(batch,)``: an upper bound, or an estimate if asked for."""
        self.calls += 1
        if self.calls > self.planned:
            raise RuntimeError(f"a certificate planned for {self.planned} norms took more: delta is overdrawn.")
        limit = self.config.norm_iterations
        options: dict[str, Any] = {} if limit is None else {"max_iterations": limit}
        if not self.config.is_estimate or self.config.seed is not None:
            options["seed"] = next_seed(self.seed, self.calls)
        if self.config.bound != "product" and self.config.norm_tolerance > _NEAR:
            options["work_limit"] = _WORK_LIMIT
        result = masked_spectral_norm(
            map_,
            mask_in,
            mask_out,
            method=self.config.norm_method,
            certificate=self.config.certificate,
            delta=self.config.delta / self.planned,
            rtol=self.config.norm_tolerance,
            **options,
        )
        self._kind = weaker(self._kind, result.certificate)
        # an eliminated neighbourhood has norm 0 whatever else happens; NaN must not pass as a bound
        return torch.where(torch.isnan(result.upper), torch.inf, result.upper)

    @property
    def worth(self) -> Certificate:
        """Of all answers so far together: the weakest kind, and the whole budget's δ where that is probabilistic."""
        return Certificate.of(self._kind, self.config.delta)


@torch.no_grad()
def norm_below(map_: LinearMap, mask_in: Tensor | None = None, mask_out: Tensor | None = None) -> Tensor:
    """A cheap estimate of a masked norm from below, ``(batch,)``: no bound, good to see which norms are not needed."""
    options: dict[str, Any] = {"certificate": "estimate", "max_iterations": _ESTIMATE_STEPS, "seed": 0}
    return masked_spectral_norm(map_, mask_in, mask_out, **options).lower
