"""What is tried on a sample at a radius, cheap bounds first, and forecasts of which can succeed at all.

A forecast is a bound with norms that were found from below, in a few steps: no bound, but where not even that is
positive, the bound with certified norms is not either, and is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import LirpaLipError
from lirpa_lip.methods import METHODS
from lirpa_lip.results import Certificate

#: Steps of a forecast's norms, and the share of its reach that it may be off by (descents are not quite monotone).
_STEPS, _ROOM, _ROOM_OF_DESCENT = 6, 1e-3, 1e-2
#: Bounds that are forecast. CROWN's intervals, which local-lip-crown begins with, cost as much again.
_FORECAST = ("local-product", "local-lip", "sdp-crown")


def stages_of(name: str) -> tuple[str, ...]:
    """Names of the bounds that decide a sample for ``name``, in the order in which they are tried."""
    whole = METHODS[name].family == "local" and name != "local-product"
    return ("local-product", name) if whole else (name,)


@dataclass(frozen=True)
class Batch:
    """Samples, the rows of their margins, radii, and the least margin of each at the sample itself."""

    x: Tensor
    rows: Tensor
    eps: Tensor
    margin: Tensor

    def of(self, index: Tensor) -> Batch:
        return Batch(self.x[index], self.rows[index], self.eps[index], self.margin[index])


class Stage:
    """One bound of the margins.

    Args:
        name: of the bound.
        config: of its norms; its δ is that of one verdict.
        forecast: ask a forecast first.

    Attributes:
        worth: of the last verdicts, None for a bound without a certificate of its own, or where there were none.
        tried: samples that were bounded, so far.
    """

    def __init__(
        self, name: str, model: nn.Module, sample: Tensor, config: LocalLipConfig, *, forecast: bool = False
    ) -> None:
        config = replace(config, bound="product" if name == "local-product" else "auto")
        self.name, self.is_local = name, METHODS[name].family == "local"
        self.method = {"local-product": "local-lip"}.get(name, name)
        self.bounded = BoundedModule(model, torch.zeros_like(sample), bound_opts={"local_lip": config})
        self.worth: Certificate | None = None
        self.tried = 0
        self._forecast: BoundedModule | None = None
        if forecast and name in _FORECAST:
            quick = {"certificate": "estimate", "norm_iterations": _STEPS, "precision": "float32", "inference": None}
            options = {"local_lip": replace(config, seed=0, **quick)}  # type: ignore[arg-type]
            self._forecast = BoundedModule(model, torch.zeros_like(sample), bound_opts=options)

    def least_margin(self, batch: Batch) -> Tensor:
        """Lower bounds ``(batch,)``, −inf of a sample that was not bounded, or whose bound is NaN."""
        self.worth = None
        found = torch.full_like(batch.margin, -torch.inf)
        index = self.hopeful(batch).nonzero().squeeze(1)
        if len(index):
            found[index] = self._least(self.bounded, batch.of(index)).to(found)
            self.tried += len(index)
            self.worth = self.bounded.last_certificate if self.is_local else None
        return torch.where(found.isnan(), -torch.inf, found)  # NaN and ties are not verified

    def hopeful(self, batch: Batch) -> Tensor:
        """Which samples the bound may verify."""
        if self._forecast is None:
            return torch.ones_like(batch.margin, dtype=torch.bool)
        try:
            guess = self._least(self._forecast, batch).to(batch.margin)
        except LirpaLipError:  # float32 is narrower than what the bound itself is computed in
            return torch.ones_like(batch.margin, dtype=torch.bool)
        room = _ROOM_OF_DESCENT if self.name == "sdp-crown" else _ROOM
        return ~(guess <= -room * (batch.margin - guess))

    def _least(self, bounded: BoundedModule, batch: Batch) -> Tensor:
        ball = BoundedTensor(batch.x, PerturbationLpNorm(norm=2, eps=batch.eps.to(batch.x.dtype)))
        # of a local row that is verified no more need be known
        threshold = 0.0 if self.is_local else None
        call = dict(C=batch.rows, method=self.method, bound_upper=False, decision_thresh=threshold)
        lower, _ = bounded.compute_bounds(x=(ball,), **call)
        return lower.amin(dim=1)


def least_margins(stages: Sequence[Stage], batch: Batch) -> Tensor:
    """The best lower bounds ``(batch,)``; no stage sees a sample that one before it has verified."""
    best = torch.full_like(batch.margin, -torch.inf)
    for stage in stages:
        left = (~(best > 0)).nonzero().squeeze(1)
        if not len(left):
            stage.worth = None
            continue
        best[left] = torch.maximum(best[left], stage.least_margin(batch.of(left)))
    return best
