"""Figures of certified accuracy against the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lirpa_lip.plots.canvas import new_figure, save
from lirpa_lip.results import Certificate, weakest
from lirpa_lip.training.certification import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KNOWN = 0.02
"""A curve is drawn where the share of samples of which nothing is known is at most this."""


class Answer(Protocol):
    """What a curve needs of each sample; `lirpa_lip.certify` returns such records."""

    @property
    def prediction(self) -> int: ...
    @property
    def label(self) -> int: ...
    @property
    def radius(self) -> float: ...
    @property
    def worth(self) -> Certificate: ...


def certified_curve(rows: Sequence[Row], points: int = 200) -> tuple[list[float], list[float]]:
    """Radii and the fraction of samples that are right and certified at each, up to the largest finite radius."""
    radii = [r.radius for r in rows if r.prediction == r.label]
    finite = [r for r in radii if 0 < r < float("inf")]
    top = max(finite, default=1.0)
    grid = [top * i / points for i in range(points + 1)]
    return grid, [sum(r >= eps for r in radii) / max(1, len(rows)) for eps in grid]


def unknown_share(rows: Sequence[Row], grid: Sequence[float]) -> list[float]:
    """The fraction of samples that are right, and neither certified at a radius nor tried in vain within it."""
    right = [r for r in rows if r.prediction == r.label]
    return [sum(r.radius < eps < r.failed for r in right) / max(1, len(rows)) for eps in grid]


def known_curve(rows: Sequence[Row], points: int = 200) -> tuple[list[float], list[float]]:
    """`certified_curve`, NaN where more than some samples may be certified or not: there was no search there."""
    grid, share = certified_curve(rows, points)
    gaps = unknown_share(rows, grid)
    return grid, [s if gap <= _KNOWN else float("nan") for s, gap in zip(share, gaps)]


def worth_of(rows: Sequence[Row]) -> str:
    """How many samples, and the weakest kind among their certificates."""
    if not rows:
        return "n = 0, nothing certified"
    worth = weakest(row.worth for row in rows)
    return f"n = {len(rows)}, {worth.kind}" + (f", δ ≤ {worth.delta:.1g} each" if worth.delta else "")


def draw_certified_accuracy(
    runs: Mapping[str, Sequence[Row]],
    path: Path,
    pgd: Mapping[str, Mapping[float, float]] | None = None,
    title: str = "",
) -> None:
    """One curve per run where it is known, dots at the radii of the run, PGD accuracies as crosses of the same colour.

    The legend says on how many samples a curve stands and what its certificates are worth.

    Args:
        runs: name -> certified rows.
        path: of the image; its ending gives the format.
        pgd: name -> {ε: accuracy under attack}.
        title: which network, on which data.
    """
    figure, axes = new_figure((7, 4.5))
    for name, rows in runs.items():
        (line,) = axes.plot(*known_curve(rows), label=f"{name} ({worth_of(rows)})", drawstyle="steps-post")
        radii = sorted({eps for row in rows for eps in row.eps})
        share = [sum(row.certified(eps) for row in rows) / max(1, len(rows)) for eps in radii]
        axes.plot([float(eps) for eps in radii], share, "o", color=line.get_color(), markersize=4)
        ceiling = (pgd or {}).get(name, {})
        axes.plot(list(ceiling), list(ceiling.values()), "x", color=line.get_color())
    axes.set(xlabel="ε, ℓ₂ radius in pixels of [0, 1]", ylabel="certified accuracy (× under PGD)", ylim=(0, 1))
    axes.set_title(title, fontsize=10)
    axes.legend()
    save(figure, path)


def accuracy_curves(
    records: Mapping[str, Sequence[Answer]], *, attacked: Mapping[float, float] | None = None, title: str = ""
) -> Figure:
    """A curve per method: the share of samples that are right and certified at each radius, at least.

    Args:
        records: name -> what `lirpa_lip.certify` says of the same samples; ``radius_steps`` there says how close the
            radii are.
        attacked: {ε: accuracy under attack}, fractions; drawn as a ceiling.
        title: which network, on which data.
    """
    figure, axes = new_figure((7, 4.5))
    safe = {name: [r.radius for r in found if r.prediction == r.label] for name, found in records.items()}
    top = max((r for radii in safe.values() for r in radii if 0 < r < float("inf")), default=1.0)
    grid = [1.05 * top * i / 400 for i in range(401)]
    for name, radii in safe.items():
        count = max(1, len(records[name]))
        worth = weakest(r.worth for r in records[name]) if records[name] else None
        label = f"{name} (n = {len(records[name])}{f', {worth.kind}' if worth else ''})"
        axes.plot(grid, [100 * sum(r >= eps for r in radii) / count for eps in grid], label=label)
    if attacked:
        eps = sorted(attacked)  # between two radii what the smaller one leaves is the ceiling
        share = [100 * attacked[e] for e in eps]
        axes.plot(eps, share, "k:", marker=".", drawstyle="steps-post", label="under attack")
    axes.set(xlabel="radius ε", ylabel="certified accuracy (%)", ylim=(0, 102), xlim=(0, grid[-1]))
    axes.set_title(title, fontsize=10)
    axes.legend()
    return figure
