"""What figures show is what they were given."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("matplotlib")

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.certifying import Certified
from lirpa_lip.errors import ShapeError
from lirpa_lip.plots import (
    accuracy_curves,
    margin_against_radius,
    method_comparison,
    neurons_by_layer,
    radius_histogram,
)
from lirpa_lip.plots.canvas import save
from lirpa_lip.results import DETERMINISTIC


def test_histogram_counts_every_finite_radius_and_names_the_rest(tmp_path):
    figure = radius_histogram([0.0, 0.1, 0.3, -math.inf, math.inf], bins=3)
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [1, 1, 1]
    assert axes.get_title() == "n = 5, without any certified ball: 1, unlimited: 1"
    save(figure, tmp_path / "new" / "radii.png")
    assert (tmp_path / "new" / "radii.png").stat().st_size > 1000


@pytest.mark.parametrize("radii", [[], [-math.inf], [0.0]])
def test_histogram_of_nothing_to_draw(radii):
    (axes,) = radius_histogram(radii).axes
    assert sum(bar.get_height() for bar in axes.patches) == sum(r >= 0 for r in radii)


def test_dots_are_the_samples_with_a_finite_radius():
    (axes,) = margin_against_radius([1.0, 2.0, 3.0], [0.5, -math.inf, 0.25]).axes
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 0.5], [3.0, 0.25]]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ShapeError, match="2 margins and 1 radii"):
        margin_against_radius([1.0, 2.0], [0.5])
    with pytest.raises(ShapeError, match="NaN"):
        radius_histogram([math.nan])


def test_shares_of_a_layer_add_up():
    (axes,) = neurons_by_layer({"a": {"stable": 1, "open": 2, "eliminated": 1}, "b": {"open": 4}}).axes
    widths = [[bar.get_width() for bar in group] for group in axes.containers]
    assert widths == [[0, 25], [100, 50], [0, 25]]  # kinds; from below: b, a


def test_bars_of_methods():
    (axes,) = method_comparison(["x", "y"], [0.5, 0.25], ceiling=0.75, samples=8).axes
    assert [bar.get_width() for bar in axes.patches] == [50, 25]
    assert axes.lines[0].get_xdata()[0] == 75 and axes.get_title() == "n = 8"


def test_curves_count_right_samples_that_are_safe_at_each_radius():
    radii = [(1, 0.5), (1, 1.0), (0, 1.0), (1, -math.inf)]  # the third prediction is wrong: the label is 1
    records = {"m": [Certified(True, prediction, 1, radius, DETERMINISTIC) for prediction, radius in radii]}
    (axes,) = accuracy_curves(records, attacked={0.5: 0.75}).axes
    grid, share = axes.lines[0].get_data()
    at = {round(float(eps), 6): value for eps, value in zip(grid, share)}
    assert at[0.0] == 50 and at[min(at, key=lambda e: abs(e - 0.4))] == 50
    assert at[min(at, key=lambda e: abs(e - 0.7))] == 25 and at[max(at)] == 0
    assert list(axes.lines[1].get_ydata()) == [75]
    assert accuracy_curves({"nothing": []}).axes


def test_layers_of_a_constant_are_counted_as_its_intervals_say():
    """Against the pre-activations' exact intervals on a ball, row by row: centre ± eps ‖row‖."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 40), torch.nn.ReLU(), torch.nn.Linear(40, 2)).eval()
    x, eps = torch.randn(4, 3), 0.3
    ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    found = BoundedModule(model, x[:1]).local_lipschitz(x=ball)
    (counted,) = found.details["layers"].values()
    centre, move = model[0](x).detach(), eps * model[0].weight.detach().norm(dim=1)
    assert counted["eliminated"].tolist() == (centre + move <= 0).sum(1).tolist()
    assert counted["stable"].tolist() == (centre - move >= 0).sum(1).tolist()
    assert (sum(counted.values()) == found.neurons).all() and 0 < int(counted["open"].sum())
    assert (found.stable == counted["stable"] + counted["eliminated"]).all()
    (axes,) = neurons_by_layer(found.details["layers"]).axes
    widths = [bar.get_width() for group in axes.containers for bar in group]
    assert widths == pytest.approx([float(100 * counted[k].sum() / 160) for k in ("stable", "open", "eliminated")])
