"""Valid, tight and fast local Lipschitz bounds for auto_LiRPA."""

from lirpa_lip import _compat  # noqa: F401  (must run before anything imports auto_LiRPA)

from auto_LiRPA import BoundedTensor  # noqa: E402

from lirpa_lip import nn  # noqa: E402
from lirpa_lip.bounded_module import BoundedModule, register, unregister  # noqa: E402
from lirpa_lip.config import LocalLipConfig  # noqa: E402
from lirpa_lip.norms import NormResult, masked_spectral_norm  # noqa: E402
from lirpa_lip.perturbation import PerturbationLpNorm  # noqa: E402
from lirpa_lip.result import LipschitzResult  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "BoundedModule",
    "BoundedTensor",
    "LipschitzResult",
    "LocalLipConfig",
    "NormResult",
    "PerturbationLpNorm",
    "masked_spectral_norm",
    "nn",
    "register",
    "unregister",
]
