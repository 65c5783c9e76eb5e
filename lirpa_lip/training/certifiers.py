"""Verdicts on single samples: is the prediction the same on the whole ball, and up to which radius is that known?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lirpa_lip import LocalLipConfig
from lirpa_lip.comparison import Global
from lirpa_lip.errors import CertificateError
from lirpa_lip.margin import margin_specification
from lirpa_lip.methods import METHODS, current_name, names_at
from lirpa_lip.ranges import check_delta
from lirpa_lip.results import Certificate, Certified, Kind, weaker, weakest
from lirpa_lip.training.epsilon import rounded_up
from lirpa_lip.training.radius_search import Brackets
from lirpa_lip.training.stages import Batch, Stage, least_margins, stages_of

# Networks trained for a small norm product are worth norms that are near: all of their margins hang on them.
_NORM_TOLERANCE = 1e-3
#: Norms that are taken once for all samples cost little, however near they are.
_GLOBAL_TOLERANCE = 1e-5
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

    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction], refuted: Tensor | None = None) -> Verdict:
        """Certified radii, at least the largest of ``eps`` (ascending) at which a sample is verified.

        Args:
            refuted: ``(batch,)``, from which radius on nothing more need be known of a sample, since an attack
                succeeded there; −inf where that is so at all radii.
        """
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
        config = replace(config, norm_tolerance=_GLOBAL_TOLERANCE)
        self.method = Global(model, sample, config, composed=name == "global-composed")
        self.model = model

    def prepare(self, radii: int) -> None:
        """The norms are there since it was made."""

    @torch.no_grad()
    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction], refuted: Tensor | None = None) -> Verdict:
        logits = self.model(x)
        rows = margin_specification(predictions, logits.shape[1], x.dtype)
        size = max(1, _ROWS // rows.shape[1])
        parts = [self._radius(*part) for part in zip(x.split(size), logits.split(size), rows.split(size))]
        radius = torch.cat(parts)
        return Verdict(radius, _after(radius), self.method.norm.worth)

    def _radius(self, x: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        margins = torch.einsum("bso,bo->bs", rows, logits)
        found = self.method.rows(x, rows)
        # A tie has margin 0 and certifies no ball at all, not even one of radius 0.
        ratio = torch.where(margins > 0, margins / found.upper, -torch.inf)
        radius = ratio.amin(dim=1).double() * (1 - 1e-6)
        tried = torch.where(radius.isfinite() & (radius > 0), radius, 1.0)
        verified = (found.lower(tried) > 0).all(dim=1)
        return torch.where(verified & (radius > 0), radius, -torch.inf)


def _after(radius: Tensor) -> Tensor:
    """A global bound has one constant at all radii, so what lies beyond its radius would be tried in vain."""
    return torch.nextafter(radius.clamp(min=0), torch.full_like(radius, torch.inf))


class LocalCertifier:
    """Verifies at each radius with bounds that hold on that ball, then searches the radius in what is left between.

    A ball that is verified makes all smaller ones safe, so radii are tried from the largest down, and a sample that
    has been verified is not tried again. The search begins at the global bounds' radius, so that the result is never
    worse than those. Without a search a sample passes through stages (`lirpa_lip.training.stages`), and leaves at the
    first that decides it. Each sample sees ``len(eps)`` local verdicts of every stage at most, ``radius_steps`` more
    and those of the global bounds, among which its δ is divided.
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
        self.names = (name,) if radius_steps else stages_of(name)
        self._verdicts = 0
        self.stages: list[Stage] = []
        self._global: list[GlobalCertifier] = []
        self._kind: Kind = "deterministic"

    @torch.no_grad()
    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction], refuted: Tensor | None = None) -> Verdict:
        self.prepare(len(eps))
        self._kind = "deterministic"
        logits = self.model(x)
        rows = margin_specification(predictions, logits.shape[1], x.dtype)
        margins = torch.einsum("bso,bo->bs", rows, logits).amin(dim=1)
        # rows that are verified are not worked on any more, so their values say little of the slope
        found = Brackets(margins.double(), exact_when_safe=self.name != "sdp-crown")
        refuted = torch.full_like(found.safe, torch.inf) if refuted is None else refuted.to(found.safe)
        known = self._floors(x, predictions, eps, found)
        for value in reversed([rounded_up(value) for value in eps]):
            wanted = (found.safe < value) & (value < refuted)
            self._try(x, rows, found, torch.full_like(found.safe, value), wanted)
        for _ in range(self.radius_steps):
            guess = found.guess()
            self._try(x, rows, found, guess, (guess > found.safe) & (guess < found.failed))
        for radius, kind in known:
            if bool(((radius > 0) & (found.safe == radius)).any()):
                self._kind = weaker(self._kind, kind)  # the radius of one of them rests on it
        found.failed = torch.where(refuted > found.safe, torch.minimum(found.failed, refuted), found.failed)
        return Verdict(found.safe, found.failed, Certificate.of(self._kind, self.delta))

    def prepare(self, radii: int) -> None:
        verdicts = radii * len(self.names) + self.radius_steps + len(self.floors)
        if self.stages and verdicts <= self._verdicts:
            return
        shared = LocalLipConfig(delta=self.delta / verdicts, **self.common)
        config = replace(shared, image_box=self.image_box)
        forecast = not self.radius_steps
        stages = [Stage(name, self.model, self.sample, config, forecast=forecast) for name in self.names]
        floors = [GlobalCertifier(floor, self.model, self.sample, shared) for floor in self.floors]
        # all of it or nothing: memory may run out before, and what there is has a larger δ for each verdict
        self.stages, self._global, self._verdicts = stages, floors, verdicts

    def _floors(
        self, x: Tensor, predictions: Tensor, eps: list[Fraction], found: Brackets
    ) -> list[tuple[Tensor, Kind]]:
        """Raises the radii to those of the global bounds, which it returns with their kinds."""
        known: list[tuple[Tensor, Kind]] = []
        for certifier in self._global:
            # without a search nobody asks what is beyond the largest radius
            index = (self.radius_steps > 0) | (found.safe < rounded_up(eps[-1]))
            radius = torch.full_like(found.safe, -torch.inf)
            if bool(index.any()):
                verdict = certifier(x[index], predictions[index], eps)
                radius[index] = verdict.radius
                known.append((radius, verdict.kind))
            found.raise_to(radius)
        return known

    def _try(self, x: Tensor, rows: Tensor, found: Brackets, eps: Tensor, wanted: Tensor) -> None:
        """Verifies the wanted samples at their own radii and notes the outcome."""
        index = wanted.nonzero().squeeze(1)
        if not len(index):
            return
        batch = Batch(x[index], rows[index], eps[index], found.margin[index])
        found.note(index, batch.eps, least_margins(self.stages, batch))
        for stage in self.stages:
            if stage.worth is not None:
                self._kind = weaker(self._kind, stage.worth.kind)
