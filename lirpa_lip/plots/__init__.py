"""Pictures from a call; they need matplotlib (extra ``[plots]``), which is imported when one is drawn."""

from lirpa_lip.plots.bars import method_comparison, neurons_by_layer, stacked_shares
from lirpa_lip.plots.certified_accuracy import accuracy_curves, draw_certified_accuracy
from lirpa_lip.plots.radii import margin_against_radius, radius_histogram

__all__ = [
    "accuracy_curves",
    "draw_certified_accuracy",
    "margin_against_radius",
    "method_comparison",
    "neurons_by_layer",
    "radius_histogram",
    "stacked_shares",
]
