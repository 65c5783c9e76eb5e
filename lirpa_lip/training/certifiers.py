"""Verdicts on single samples: is the prediction the same on the whole ball, and up to which radius is that known?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.comparison import Global
from lirpa_lip.errors import CertificateError
from lirpa_lip.margin import margin_specification
from lirpa_lip.methods import METHODS, current_name, names_at
from lirpa_lip.ranges import check_delta
from lirpa_lip.results import Certificate, Certified, Kind, weaker, weakest
from lirpa_lip.training.epsilon import rounded_up
from lirpa_lip.training.radius_search import Brackets

# Networks trained for a small norm product are worth norms that are near: all of their margins hang on them.
_NORM_TOLERANCE = 1e-3
CERTIFIERS = names_at("certify")
#: Most rows of margins whose global constants are computed at once.
_ROWS = 2000


@dataclass(frozen=True)
class Verdict(Certified):
    """Of a batch.

    Attributes:
        radius: (batch,) float64; every ball of at most that radius (closed) is safe; −inf where none is known to be.
        failed: (batch,) float64; the smallest radius that was tried in vain, inf for none. Of what lies between the
            two nothing is known.
        worth: the certificate of all of it, per sample.
    """

    radius: Tensor
    failed: Tensor
    worth: Certificate

    @property
    def kind(self) -> Kind:
        return self.worth.kind

    @classmethod
    def of_parts(cls, parts: Sequence[Verdict]) -> Verdict:
        """Of a batch, from those of its consecutive parts."""
        if len(parts) == 1:
            return parts[0]
        radius, failed = (torch.cat([getattr(part, name) for part in parts]) for name in ("radius", "failed"))
        return cls(radius, failed, weakest(part.worth for part in parts))


class Certifier(Protocol):
    """Certifies predictions of one model."""

    def prepare(self, radii: int) -> None:
        """Computes what all samples share, for calls with at most that many radii: a call's chance is then its own."""
        ...

    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction]) -> Verdict:
        """Certified radii, at least the largest of ``eps`` (ascending) at which a sample is verified."""
        ...


def shared_settings(certificate: str, inference: str | None) -> dict[str, Any]:
    """What every certifier's ``LocalLipConfig`` holds.

    Raises:
        CertificateError: an estimate was asked for.
        ConfigError: there is no such certificate, or arithmetic.
    """
    if certificate == "estimate":
        raise CertificateError("an estimate certifies nothing: choose auto, deterministic or probabilistic.")
    common = {"certificate": certificate, "norm_tolerance": _NORM_TOLERANCE, "inference": inference}
    LocalLipConfig(**common)  # type: ignore[arg-type]
    return common


def make_certifier(
    name: str,
    model: nn.Module,
    sample: Tensor,
    certificate: str = "auto",
    delta: float = 1e-6,
    *,
    radius_steps: int = 2,
    image_box: tuple[float, float] | None = None,
    inference: str | None = None,
) -> Certifier:
    """The certifier ``name`` (one of ``CERTIFIERS``) for ``model``.

    Args:
        certificate: ``"auto"``, ``"deterministic"`` or ``"probabilistic"``.
        delta: failure probability of everything that is said of one sample.
        radius_steps: verdicts spent on the radius between, and beyond, the given ones.
        image_box: (low, high) of possible pixels; None for the whole ball.
        inference: the arithmetic that the network is run in, see ``LocalLipConfig``; None for the default.

    Raises:
        UnknownMethodError: no such certifier.
        CertificateError: an estimate was asked for.
        ConfigError: delta does not lie strictly between 0 and 1, or a setting is not available.
    """
    name = current_name(name, "certify")
    check_delta(delta)
    common = shared_settings(certificate, inference)
    if METHODS[name].family == "global":
        return GlobalCertifier(name, model, sample, LocalLipConfig(delta=delta, **common))
    return LocalCertifier(name, model, sample, common, delta, radius_steps=radius_steps, image_box=image_box)


class GlobalCertifier:
    """radius = min_j (logit_y − logit_j) / L_j with a global bound, rounded down and verified at that radius."""

    def __init__(self, name: str, model: nn.Module, sample: Tensor, config: LocalLipConfig) -> None:
        self.method = Global(model, sample, config, composed=name == "global-composed")
        self.model = model

    def prepare(self, radii: int) -> None:
        """The norms are there since it was made."""

    @torch.no_grad()
    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction]) -> Verdict:
        logits = self.model(x)
        rows = margin_specification(predictions, logits.shape[1], x.dtype)
        size = max(1, _ROWS // rows.shape[1])
        parts = [self._radius(*part) for part in zip(x.split(size), logits.split(size), rows.split(size))]
        radius = torch.cat(parts)
        return Verdict(radius, _after(radius), self.method.norm.worth)

    def _radius(self, x: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        margins = torch.einsum("bso,bo->bs", rows, logits)
        found = self.method.lipschitz(x, rows, 0.0)
        assert found is not None
        # A tie has margin 0 and certifies no ball at all, not even one of radius 0.
        ratio = torch.where(margins > 0, margins / found.upper, -torch.inf)
        radius = ratio.amin(dim=1).double() * (1 - 1e-6)
        tried = torch.where(radius.isfinite() & (radius > 0), radius, 1.0)
        verified = (self.method.lower(x, rows, tried).lower > 0).all(dim=1)
        return torch.where(verified & (radius > 0), radius, -torch.inf)


def _after(radius: Tensor) -> Tensor:
    """A global bound has one constant at all radii, so what lies beyond its radius would be tried in vain."""
    return torch.nextafter(radius.clamp(min=0), torch.full_like(radius, torch.inf))


class LocalCertifier:
    """Verifies at each radius with bounds that hold on that ball, then searches the radius in what is left between.

    A ball that is verified makes all smaller ones safe, so radii are tried from the largest down, and a sample that
    has been verified is not tried again. The search begins at the global bounds' radius, so that the result is never
    worse than those. Each sample sees ``len(eps) + radius_steps`` local verdicts at most and those of the global
    bounds, among which its δ is divided.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        sample: Tensor,
        common: dict[str, Any],
        delta: float,
        *,
        radius_steps: int,
        image_box: tuple[float, float] | None,
    ) -> None:
        self.name, self.model, self.sample, self.common = name, model, sample, common
        self.delta, self.radius_steps, self.image_box = delta, radius_steps, image_box
        self.is_local = METHODS[name].family == "local"
        # the product first: so its norms begin where those of certify --bound global-product do
        floors = ("global-product",) if name == "local-product" else ("global-product", "global-composed")
        self.floors = floors if self.is_local else ()
        self._verdicts = 0
        self._bounded: BoundedModule | None = None
        self._global: list[GlobalCertifier] = []
        self._kind: Kind = "deterministic"

    @torch.no_grad()
    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction]) -> Verdict:
        self.prepare(len(eps))
        self._kind = "deterministic"
        logits = self.model(x)
        rows = margin_specification(predictions, logits.shape[1], x.dtype)
        margins = torch.einsum("bso,bo->bs", rows, logits).amin(dim=1)
        # rows that are verified are not worked on any more, so their values say little of the slope
        found = Brackets(margins.double(), exact_when_safe=self.name != "sdp-crown")
        known = [certifier(x, predictions, eps) for certifier in self._global]
        for verdict in known:
            found.raise_to(verdict.radius)
        for value in reversed([rounded_up(value) for value in eps]):
            self._try(x, rows, found, torch.full_like(found.safe, value), found.safe < value)
        for _ in range(self.radius_steps):
            guess = found.guess()
            self._try(x, rows, found, guess, (guess > found.safe) & (guess < found.failed))
        for verdict in known:
            if bool(((verdict.radius > 0) & (found.safe == verdict.radius)).any()):
                self._kind = weaker(self._kind, verdict.kind)  # the radius of one of them rests on it
        return Verdict(found.safe, found.failed, Certificate.of(self._kind, self.delta))

    def prepare(self, radii: int) -> None:
        verdicts = radii + self.radius_steps + len(self.floors)
        if self._bounded is not None and verdicts <= self._verdicts:
            return
        method = {"local-product": "local-lip"}.get(self.name, self.name)
        self._method, self._verdicts = method, verdicts
        config = LocalLipConfig(
            bound="product" if self.name == "local-product" else "auto",
            delta=self.delta / verdicts,
            image_box=self.image_box,
            **self.common,
        )
        self._bounded = BoundedModule(self.model, torch.zeros_like(self.sample), bound_opts={"local_lip": config})
        shared = LocalLipConfig(delta=self.delta / verdicts, **self.common)
        self._global = [GlobalCertifier(floor, self.model, self.sample, shared) for floor in self.floors]

    def _try(self, x: Tensor, rows: Tensor, found: Brackets, eps: Tensor, wanted: Tensor) -> None:
        """Verifies the wanted samples at their own radii and notes the outcome."""
        index = wanted.nonzero().squeeze(1)
        if len(index):
            found.note(index, eps[index], self._least_margin(x[index], rows[index], eps[index]))

    def _least_margin(self, x: Tensor, rows: Tensor, eps: Tensor) -> Tensor:
        assert self._bounded is not None
        ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps.to(x.dtype)))
        # of a local row that is verified no more need be known
        threshold = 0.0 if self.is_local else None
        lower, _ = self._bounded.compute_bounds(
            x=(ball,), C=rows, method=self._method, bound_upper=False, decision_thresh=threshold
        )
        if self.is_local:
            self._kind = weaker(self._kind, self._bounded.last_certificate.kind)
        return torch.where(lower.isnan(), -torch.inf, lower).amin(dim=1)  # NaN and ties are not verified
