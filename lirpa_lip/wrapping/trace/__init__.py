"""Between PyTorch's trace of a model and its lowering to ONNX: what that would drop is refused or rewritten."""

from lirpa_lip.wrapping.trace.hooks import prepared

__all__ = ["prepared"]
