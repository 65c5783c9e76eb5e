"""Linear maps that norms are taken of: one interface, and a class per kind of map."""

from lirpa_lip.norms.maps.base import LinearMap
from lirpa_lip.norms.maps.compose import ComposedMap, MaskedMap, SumMap
from lirpa_lip.norms.maps.conv import (
    Conv1dMap,
    Conv2dMap,
    ConvMap,
    ConvTranspose1dMap,
    ConvTranspose2dMap,
    ConvTransposeMap,
)
from lirpa_lip.norms.maps.dense import DenseMap
from lirpa_lip.norms.maps.diagonal import DiagonalMap, IdentityMap, ReshapeMap
from lirpa_lip.norms.maps.function import FunctionMap
from lirpa_lip.norms.maps.indexed import IndexedMap

__all__ = [
    "ComposedMap",
    "Conv1dMap",
    "Conv2dMap",
    "ConvMap",
    "ConvTranspose1dMap",
    "ConvTranspose2dMap",
    "ConvTransposeMap",
    "DenseMap",
    "DiagonalMap",
    "FunctionMap",
    "IdentityMap",
    "IndexedMap",
    "LinearMap",
    "MaskedMap",
    "ReshapeMap",
    "SumMap",
]
