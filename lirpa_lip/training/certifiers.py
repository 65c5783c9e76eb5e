"""Verdicts on single samples: is the prediction the same on the whole ball, and up to which radius is that known?"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor, nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import CertificateError, UnknownMethodError
from lirpa_lip.losses.global_bound import GlobalBound
from lirpa_lip.margin import margin_specification
from lirpa_lip.training.epsilon import rounded_up

# Networks trained for a small norm product are worth norms that are near: all of their margins hang on them.
_NORM_TOLERANCE = 1e-3
# Name -> (method of compute_bounds, bound of LocalLipConfig).
_LOCAL = {
    "local-lip": ("local-lip", "product"),
    "composed": ("local-lip", "auto"),
    "composed-crown": ("local-lip-crown", "auto"),
    "sdp-crown": ("sdp-crown", "auto"),
}
_LIRPA = {"ibp": "ibp", "crown-ibp": "crown-ibp", "crown": "crown"}
CERTIFIERS = ("global", *_LOCAL, *_LIRPA)


@dataclass(frozen=True)
class Verdict:
    """Of a batch: ``radius`` (batch,) float64, every ball of at most that radius (closed) is safe; kind and δ."""

    radius: Tensor
    kind: str
    failure_probability: float


class Certifier(Protocol):
    """Certifies predictions of one model."""

    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction]) -> Verdict:
        """Certified radii, at least the largest of ``eps`` (ascending) at which a sample is verified."""
        ...


def make_certifier(
    name: str,
    model: nn.Module,
    sample: Tensor,
    certificate: str = "auto",
    delta: float = 1e-6,
    radius_steps: int = 4,
    image_box: tuple[float, float] | None = None,
) -> Certifier:
    """The certifier ``name`` (one of ``CERTIFIERS``) for ``model``.

    Args:
        certificate: ``"auto"``, ``"deterministic"`` or ``"probabilistic"``.
        delta: failure probability of everything that is said of one sample.
        radius_steps: bisection steps for the radius between the given ones.
        image_box: (low, high) of possible pixels; None for the whole ball.

    Raises:
        UnknownMethodError: no such certifier.
        CertificateError: an estimate was asked for.
    """
    if name not in CERTIFIERS:
        raise UnknownMethodError(name, CERTIFIERS, kind="bound")
    if certificate == "estimate":
        raise CertificateError("an estimate certifies nothing: choose auto, deterministic or probabilistic.")
    if name == "global":
        return GlobalCertifier(model, sample, certificate, delta)
    return LocalCertifier(name, model, sample, certificate, delta, radius_steps, image_box)


class GlobalCertifier:
    """radius = min_j (logit_y − logit_j) / L_j with the global bound, rounded down."""

    def __init__(self, model: nn.Module, sample: Tensor, certificate: str, delta: float) -> None:
        self.bound = GlobalBound(model, sample, certificate, delta=delta).eval()

    @torch.no_grad()
    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction]) -> Verdict:
        logits, pairs, *_ = self.bound(x, 0.0, predictions)
        margin = logits.gather(1, predictions[:, None]) - logits
        # A tie has margin 0 and certifies no ball at all, not even one of radius 0.
        ratio = torch.where(margin > 0, margin / pairs, -torch.inf).scatter(1, predictions[:, None], torch.inf)
        radius = ratio.amin(dim=1).double() * (1 - 1e-6)
        radius = torch.where(radius.isnan(), -torch.inf, radius)
        return Verdict(radius, self.bound.certificate, self.bound.failure_probability)


class LocalCertifier:
    """Verifies at each radius with bounds that hold on that ball, then bisects for the radius.

    A ball that is verified makes all smaller ones safe, so radii are tried from the largest down, and a sample that
    has been verified is not tried again. Each sample sees ``len(eps) + radius_steps`` verdicts at most, among which
    its δ is divided.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        sample: Tensor,
        certificate: str,
        delta: float,
        radius_steps: int,
        image_box: tuple[float, float] | None,
    ) -> None:
        self.name, self.model, self.sample = name, model, sample
        self.certificate, self.delta, self.radius_steps, self.image_box = certificate, delta, radius_steps, image_box
        self._verdicts = 0
        self._bounded: BoundedModule | None = None
        self._kinds: set[str] = set()

    @torch.no_grad()
    def __call__(self, x: Tensor, predictions: Tensor, eps: list[Fraction]) -> Verdict:
        self._prepare(len(eps) + self.radius_steps)
        tried = [rounded_up(value) for value in eps]
        safe = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        unsafe = torch.full_like(safe, torch.inf)
        for value in reversed(tried):
            self._try(x, predictions, torch.full_like(safe, value), safe, unsafe, safe < value)
        for _ in range(self.radius_steps):
            middle = torch.where(unsafe.isinf(), 2 * safe, (safe.clamp(min=0) + unsafe) / 2)
            # A sample that no radius has verified so far may be a tie: bisecting towards 0 is worth a few steps only.
            self._try(x, predictions, middle, safe, unsafe, middle > 0)
        probabilistic = "probabilistic" in self._kinds
        return Verdict(
            safe, "probabilistic" if probabilistic else "deterministic", self.delta if probabilistic else 0.0
        )

    def _prepare(self, verdicts: int) -> None:
        if self._bounded is None or verdicts > self._verdicts:
            method, bound = _LOCAL.get(self.name, ("", "auto"))
            config = LocalLipConfig(
                bound=bound,  # type: ignore[arg-type]
                certificate=self.certificate,  # type: ignore[arg-type]
                delta=self.delta / verdicts,
                norm_tolerance=_NORM_TOLERANCE,
                image_box=self.image_box,
            )
            self._method, self._verdicts = method or _LIRPA[self.name], verdicts
            self._bounded = BoundedModule(self.model, torch.zeros_like(self.sample), bound_opts={"local_lip": config})

    def _try(self, x: Tensor, predictions: Tensor, eps: Tensor, safe: Tensor, unsafe: Tensor, wanted: Tensor) -> None:
        """Verifies the wanted samples at their own radii and notes the outcome in ``safe`` and ``unsafe``."""
        index = wanted.nonzero().squeeze(1)
        if not len(index):
            return
        verified = self._verified(x[index], predictions[index], eps[index])
        safe[index] = torch.where(verified, torch.maximum(safe[index], eps[index]), safe[index])
        unsafe[index] = torch.where(verified, unsafe[index], torch.minimum(unsafe[index], eps[index]))

    def _verified(self, x: Tensor, predictions: Tensor, eps: Tensor) -> Tensor:
        assert self._bounded is not None
        ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps.to(x.dtype)))
        classes = self.model(x[:1]).shape[1]
        specification = margin_specification(predictions, classes, x.dtype)
        local = self.name in _LOCAL
        lower, _ = self._bounded.compute_bounds(
            x=(ball,),
            C=specification,
            method=self._method,
            bound_upper=False,
            decision_thresh=0.0 if local else None,  # of a row that is verified no more need be known
        )
        if local:
            self._kinds.add(self._bounded.last_certificate[0])
        return (lower > 0).all(dim=1)  # NaN and ties are not verified
