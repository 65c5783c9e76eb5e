"""Certified radii of samples: how they are distributed, and how they go with the margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lirpa_lip.errors import ShapeError
from lirpa_lip.plots.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def radius_histogram(radii: Sequence[float], *, bins: int = 20, unit: str = "ℓ₂, in units of the input") -> Figure:
    """Histogram of certified radii; samples without any certified ball are counted in the title.

    Args:
        radii: one per sample, −inf where no ball is certified and inf where every ball is, as `lirpa_lip.certify` says.
        bins: bars between 0 and the largest finite radius.
        unit: of the radii, for the axis.

    Raises:
        ShapeError: a radius is NaN.

    Example:
        >>> radius_histogram([0.1, 0.2, -math.inf]).axes[0].get_title()
        'n = 3, without any certified ball: 1'
    """
    _no_nan(radii)
    finite = [r for r in radii if 0 <= r < math.inf]
    none, every = sum(r < 0 for r in radii), sum(r == math.inf for r in radii)
    figure, axes = new_figure()
    axes.hist(finite, bins=bins, range=(0, max(finite, default=0.0) or 1.0))
    title = f"n = {len(radii)}, without any certified ball: {none}" + f", unlimited: {every}" * bool(every)
    axes.set(xlabel=f"certified radius ({unit})", ylabel="samples", title=title)
    return figure


def margin_against_radius(
    margins: Sequence[float], radii: Sequence[float], *, unit: str = "ℓ₂, in units of the input"
) -> Figure:
    """A dot per sample with a finite certified radius: margin of the logits at the sample, and the radius.

    Args:
        margins: largest logit less the second one, per sample.
        radii: as in `radius_histogram`.
        unit: of the radii, for the axis.

    Raises:
        ShapeError: the two differ in length, or a value is NaN.
    """
    if len(margins) != len(radii):
        raise ShapeError(f"{len(margins)} margins and {len(radii)} radii; give one of each for every sample.")
    _no_nan([*margins, *radii])
    pairs = [(m, r) for m, r in zip(margins, radii) if 0 <= r < math.inf]
    figure, axes = new_figure()
    axes.plot([m for m, _ in pairs], [r for _, r in pairs], "o", markersize=4, alpha=0.7)
    title = f"{len(pairs)} of n = {len(radii)} samples have a finite certified radius"
    axes.set(xlabel="margin at the sample (logits)", ylabel=f"certified radius ({unit})", title=title)
    return figure


def _no_nan(values: Sequence[float]) -> None:
    if any(math.isnan(value) for value in values):
        raise ShapeError("a margin or radius is NaN; a sample without a certified ball has the radius -inf.")
