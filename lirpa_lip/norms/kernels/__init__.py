"""Fused steps of the iterations: one eager reference, and kernels which must agree with it."""

from lirpa_lip.norms.kernels.registry import backend, use_backend

__all__ = ["backend", "use_backend"]
