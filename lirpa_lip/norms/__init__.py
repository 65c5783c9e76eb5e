"""Largest singular values of masked linear maps: estimates, probabilistic bounds and deterministic bounds."""

from lirpa_lip.norms.result import NormResult
from lirpa_lip.norms.solve import masked_spectral_norm
from lirpa_lip.norms.start import SharedStart

__all__ = ["NormResult", "SharedStart", "masked_spectral_norm"]
