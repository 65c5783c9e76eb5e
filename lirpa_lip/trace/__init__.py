"""Between PyTorch's trace of a model and its lowering to ONNX: what that would drop is refused or rewritten."""

from .hooks import prepared

__all__ = ["prepared"]
