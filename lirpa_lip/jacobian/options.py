"""Options of the Jacobian methods: one frozen, validated record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from lirpa_lip.errors import ConfigError, UnknownMethodError

INTERMEDIATES = ("ibp", "crown", "alpha-crown")
HEURISTICS = ("gap", "width", "area", "strong")


@dataclass(frozen=True)
class ClarkeOptions:
    """Options of the Jacobian methods, given as keywords of ``local_lipschitz``.

    Attributes:
        intermediate: pre-activation bounds: ``"ibp"``, ``"crown"`` (linear bounds of every open neuron), or
            ``"alpha-crown"`` (the same, intersected with auto_LiRPA's optimised bounds).
        entries: how many Jacobian entries of each row may be tightened by a push of their own; ``None`` for a number by
            the network's size.
        samples, steps: points and ascent steps of the lower bound.
        time_limit: seconds of branch and bound; 0 for none.
        max_domains: domains branch and bound may hold and visit at most.
        memory: bytes its waiting domains may take.
        batch: domains bounded at a time.
        heuristic: which neuron to split: ``"gap"`` (offset of its relaxation times the tangent that meets it),
            ``"width"`` (its open slope times the cotangent), ``"area"`` (the published one), ``"strong"`` (the best of
            the four leading candidates, tried out).
        tolerance: relative gap between upper and lower bound at which branch and bound stops.
        progress: called with a `branch_and_bound.Progress` now and then.
        resume: a state of an earlier run, ``result.details["state"]``.
    """

    intermediate: str = "crown"
    entries: int | None = None
    samples: int = 32
    steps: int = 20
    time_limit: float = 0.0
    max_domains: int = 100_000
    memory: int = 4 << 30
    batch: int = 32
    heuristic: str = "gap"
    tolerance: float = 1e-3
    progress: Callable | None = None
    resume: Any = None

    def __post_init__(self) -> None:
        if self.intermediate not in INTERMEDIATES:
            raise UnknownMethodError(self.intermediate, INTERMEDIATES, kind="intermediate")
        if self.heuristic not in HEURISTICS:
            raise UnknownMethodError(self.heuristic, HEURISTICS, kind="heuristic")
        least = {"samples": 1, "steps": 0, "time_limit": 0, "max_domains": 1, "memory": 1, "batch": 1, "tolerance": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {bound}.")
        if self.entries is not None and self.entries < 0:
            raise ConfigError(f"entries={self.entries} must be None or >= 0.")

    @classmethod
    def from_keywords(cls, options: Mapping) -> ClarkeOptions:
        """Checked options; an unknown name is an error that lists the known ones."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownMethodError(name, ("x", "C", "method", "norm", *known), kind="argument")
        return cls(**options)
