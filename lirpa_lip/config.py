"""Settings of the local Lipschitz bound: one frozen, validated record."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from lirpa_lip.errors import ConfigError, UnknownMethodError

BOUNDS = ("auto", "product", "composed")
CERTIFICATES = ("auto", "deterministic", "probabilistic", "estimate")
PRECISIONS = ("auto", "float32", "float64")
INFERENCE = (None, "float32", "bfloat16")
_OPTIMIZE_STEPS = 30


@dataclass(frozen=True)
class LocalLipConfig:
    """How ``method="local-lip"`` computes its bound. Pass it as ``bound_opts={"local_lip": LocalLipConfig(...)}``.

    Attributes:
        bound: ``"product"`` is the published product of masked norms; ``"composed"`` the composed bound;
            ``"auto"`` the better of the two, neuron by neuron and specification by specification.
        certificate: what the norms must be worth. ``"auto"`` takes what is cheapest to certify. ``"estimate"``, which
            is for training and diagnostics, must be asked for here by name: its numbers bound nothing.
        delta: failure probability of one sample's whole certificate, split over all norms that enter it.
        norm_method: solver of the norms, see `lirpa_lip.masked_spectral_norm`.
        norm_iterations: most iterations of a solver, ``None`` for the solver's own choice.
        norm_tolerance: relative accuracy of norms that are found by iteration. Valid at any; a norm that is 1 % too
            large costs a margin a fraction of 1 % of its reach for each layer. At 1e-3 and below,
            ``certificate="auto"`` takes deterministic norms as readily as ``bound="product"`` does.
        image_box: ``(low, high)`` if inputs outside this range cannot occur (pixels: ``(0.0, 1.0)``).
        anchored: bound slopes of secants from the centre, not of all pairs of points, wherever only deviations from
            the centre matter (margins, intermediate bounds); Lipschitz constants are for all pairs regardless.
        local_ball: intersect pre-activation bounds with the ball of the *local* radius.
        tighten: how many layers, counted from the first, have their pre-activations bounded again by the composed
            rows, one backward pass per neuron; 0 for none, -1 for all. Without products, only those of open sign.
        optimize: steps of descent on the slopes of each specification, of stable neurons too, and on the multipliers
            of the layers' balls; ``True`` for 30 of them, 0 or ``False`` for none. ``bound="product"`` takes none.
        precision: of the computation. ``"auto"`` is float64 for certificates and the model's own for estimates. A
            certificate is never computed in less than the model's own.
        inference: precision the network runs in, ``"float32"`` or ``"bfloat16"`` (weights and inputs rounded to it,
            sums in float32). Bounds of outputs then hold for what it computes, in any order of summation, and not only
            for the network in real arithmetic, which is what ``None`` speaks of.
        seed: of the random starts of norms, as an earlier run's ``details["seed"]`` or ``last_seed`` gives it, to
            repeat that run; ``None`` draws one from the operating system's entropy, and only then does ``delta`` hold.

    Raises:
        UnknownMethodError: a name that is none of those above.
        ConfigError: a number outside its range.

    Example:
        >>> LocalLipConfig(optimize=True).optimize
        30
        >>> LocalLipConfig(delta=2.0)
        Traceback (most recent call last):
        lirpa_lip.errors.ConfigError: delta=2.0 must lie strictly between 0 and 1: it is a failure probability.
    """

    bound: Literal["auto", "product", "composed"] = "auto"
    certificate: Literal["auto", "deterministic", "probabilistic", "estimate"] = "auto"
    delta: float = 1e-6
    norm_method: str = "auto"
    norm_iterations: int | None = None
    norm_tolerance: float = 1e-2
    image_box: tuple[float, float] | None = None
    anchored: bool = True
    local_ball: bool = True
    tighten: int = 0
    optimize: int | bool = 0
    precision: Literal["auto", "float32", "float64"] = "auto"
    inference: Literal["float32", "bfloat16"] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.optimize, bool):
            object.__setattr__(self, "optimize", _OPTIMIZE_STEPS if self.optimize else 0)
        settings: tuple[tuple[str, tuple[str | None, ...]], ...] = (
            ("bound", BOUNDS),
            ("certificate", CERTIFICATES),
            ("precision", PRECISIONS),
            ("inference", INFERENCE),
        )
        for name, choices in settings:
            if getattr(self, name) not in choices:
                raise UnknownMethodError(getattr(self, name), map(str, choices), kind=name)
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta={self.delta} must lie strictly between 0 and 1: it is a failure probability.")
        if self.norm_iterations is not None and self.norm_iterations < 1:
            raise ConfigError(f"norm_iterations={self.norm_iterations} must be at least 1, or None.")
        if not 0 < self.norm_tolerance < 1:
            raise ConfigError(f"norm_tolerance={self.norm_tolerance} must lie strictly between 0 and 1.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} must be an integer from 0 to 2^63 - 1, as results hold them.")
        if self.tighten < -1 or self.optimize < 0:
            raise ConfigError("tighten must be -1, 0 or a number of layers, and optimize a number of steps, >= 0.")
        if self.image_box is not None:
            if not isinstance(self.image_box, tuple | list) or len(self.image_box) != 2:
                raise ConfigError(f"image_box={self.image_box!r} must be two numbers, (low, high).")
            low, high = self.image_box
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(f"image_box={self.image_box} must be a finite (low, high) with low < high.")

    @classmethod
    def from_options(cls, options: dict | None) -> LocalLipConfig:
        """The settings in auto_LiRPA's ``bound_opts``: a `LocalLipConfig`, a dict of its fields, or the defaults.

        Raises:
            UnknownMethodError: a dict with a key that is no setting.
            ConfigError: anything else.
        """
        found = (options or {}).get("local_lip")
        if found is None:
            return cls()
        if isinstance(found, cls):
            return found
        if isinstance(found, dict):
            known = [f.name for f in fields(cls)]
            for key in found:
                if key not in known:
                    raise UnknownMethodError(key, known, kind="local_lip option")
            return cls(**found)
        raise ConfigError(f'bound_opts["local_lip"] must be a LocalLipConfig or a dict, not {type(found).__name__}.')

    @property
    def is_estimate(self) -> bool:
        return self.certificate == "estimate"
