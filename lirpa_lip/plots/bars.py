"""Stacked shares: neurons layer by layer, verdicts feature by feature; and bars of methods beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lirpa_lip.plots.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

NEURONS = {"stable": "#4c9f70", "open": "#d9a441", "eliminated": "#9aa5b1"}
"""Colours of a layer's neurons; stable here means stable and not eliminated, so that the three add up."""


def stacked_shares(counts: Mapping[str, Mapping[str, int]], colours: Mapping[str, str], label: str) -> Figure:
    """A horizontal bar per name, divided in per cent by what was counted of it.

    Args:
        counts: name -> {kind: number}, top to bottom.
        colours: kind -> colour, left to right; a kind that was not counted is 0.
        label: what is counted, for the axis.
    """
    figure, axes = new_figure((7.5, 1.4 + 0.32 * len(counts)))
    names = list(counts)[::-1]
    left = [0.0] * len(names)
    for kind, colour in colours.items():
        share = [100 * counts[n].get(kind, 0) / max(1, sum(counts[n].values())) for n in names]
        axes.barh(names, share, left=left, color=colour, label=kind, height=0.75)
        left = [a + b for a, b in zip(left, share)]
    axes.set(xlim=(0, 100), xlabel=f"{label} (%)")
    figure.legend(loc="outside lower center", ncols=len(colours), frameon=False)
    return figure


def neurons_by_layer(counts: Mapping[str, Mapping[str, int | Tensor]]) -> Figure:
    """Stable, open, eliminated neurons per layer: ``{"layer 1": {"stable": 3, "open": 2, "eliminated": 5}}``.

    Args:
        counts: such numbers, or ``result.details["layers"]`` of ``local_lipschitz``, whose samples are added up.
    """
    whole = {name: {k: int(getattr(v, "sum", lambda v=v: v)()) for k, v in c.items()} for name, c in counts.items()}
    return stacked_shares(whole, NEURONS, "neurons")


def method_comparison(
    methods: Sequence[str], certified: Sequence[float], *, ceiling: float | None = None, samples: int = 0
) -> Figure:
    """A bar per method: certified accuracy, as fractions; a line where an attack leaves no more.

    Args:
        methods: names, top to bottom.
        certified: fraction of samples each certifies.
        ceiling: accuracy under attack on the same samples.
        samples: how many there are, for the title.
    """
    figure, axes = new_figure((6.4, 1.3 + 0.32 * len(methods)))
    places = range(len(methods), 0, -1)
    axes.barh(list(places), [100 * value for value in certified], height=0.75)
    axes.set_yticks(list(places), list(methods))
    for place, value in zip(places, certified):
        axes.text(100 * value + 1, place, f"{100 * value:.3g}", va="center", fontsize=8)
    if ceiling is not None:
        axes.axvline(100 * ceiling, color="black", linewidth=1.2, label="accuracy under attack")
        figure.legend(loc="outside lower center", frameon=False)
    axes.set(xlim=(0, 105), xlabel="certified accuracy (%)", title=f"n = {samples}" if samples else "")
    return figure
