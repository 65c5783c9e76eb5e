"""Is a radius one that any network could withstand? Two images of different classes closer than 2ε are in the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch

from lirpa_lip.errors import ConfigError
from lirpa_lip.training.sources import ImageSource

_SAMPLES = 1000


@dataclass(frozen=True)
class Separation:
    """Half the distance from each of some images to the nearest of another class among them, ascending.

    An image that is certified at ε, and right, has no image of another class, also right and certified, within 2ε.
    """

    halves: tuple[float, ...]

    @property
    def smallest(self) -> float:
        """Beyond this no network certifies all images of the sample."""
        return self.halves[0] if self.halves else math.inf

    def too_close(self, eps: float) -> float:
        """Share of the images that have one of another class within 2ε."""
        return sum(half < eps for half in self.halves) / max(1, len(self.halves))


def separation_of(source: ImageSource, samples: int = _SAMPLES) -> Separation:
    """Measured on a random sample, the same at every call, so an upper bound of what all images would give."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:samples]
    images, labels = source.batch(order)
    flat = images.flatten(1).double()
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(labels.unsqueeze(0) == labels.unsqueeze(1), math.inf)
    nearest = distances.amin(dim=1) / 2
    return Separation(tuple(nearest[torch.isfinite(nearest)].sort().values.tolist()))


def check_radius(eps: Fraction, source: ImageSource, shape: tuple[int, int, int]) -> str | None:
    """A warning if no network could certify every image of the source at this radius, None if nothing speaks against.

    Raises:
        ConfigError: the ball around any image holds all images there are.
    """
    diameter = math.sqrt(math.prod(shape))
    if eps > Fraction(diameter):
        raise ConfigError(
            f"eps={float(eps):g} is more than √{math.prod(shape)} = {diameter:.4g}, the largest distance between two "
            "images in [0, 1] of this size; eps is an ℓ₂ radius in pixels of [0, 1]."
        )
    found = separation_of(source)
    if float(eps) <= found.smallest:
        return None
    return (
        f"eps={float(eps):.4g} is more than any network can withstand on all images: of {len(found.halves)} of them "
        f"{found.too_close(float(eps)):.0%} have one of another class within 2ε (half the smallest such distance is "
        f"{found.smallest:.3g})."
    )


def warn_of_radii(
    radii: Iterable[Fraction], source: ImageSource, shape: tuple[int, int, int], *, aloud: bool = True
) -> None:
    """Warns of every radius that `check_radius` speaks against; not ``aloud``, as of all processes but one, it checks.

    Raises:
        ConfigError: as it does.
    """
    for eps in radii:
        warning = check_radius(eps, source, shape)
        if warning is not None and aloud:
            warnings.warn(warning, stacklevel=3)
