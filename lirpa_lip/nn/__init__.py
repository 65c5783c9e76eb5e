"""Layers whose neurons become constant often: clipped ReLU, MaxMin and clipped MaxMin."""

from lirpa_lip.nn.clipped_relu import ClippedReLU
from lirpa_lip.nn.maxmin import ClippedMaxMin, MaxMin

__all__ = ["ClippedMaxMin", "ClippedReLU", "MaxMin"]
