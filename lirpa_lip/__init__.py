"""Valid, tight and fast local Lipschitz bounds for auto_LiRPA."""

import sys
from importlib import import_module

try:  # before anything imports auto_LiRPA
    from lirpa_lip.autolirpa import compat as _compat  # noqa: F401
except ImportError:
    if sys.argv[:1] == ["-m"] and {"lirpa_lip", "lirpa_lip.cli"} & set(sys.orig_argv):  # help needs no auto_LiRPA
        import lirpa_lip_cli

        lirpa_lip_cli.main(sys.argv[1:], prog_name="lirpa-lip")
    raise

from auto_LiRPA import BoundedTensor

from lirpa_lip import nn
from lirpa_lip.autolirpa.perturbation import PerturbationLpNorm
from lirpa_lip.bounded_module import BoundedModule, register, unregister
from lirpa_lip.config import LocalLipConfig
from lirpa_lip.memory import keep_freed_memory
from lirpa_lip.norms import NormResult, masked_spectral_norm
from lirpa_lip.results import LipschitzResult

__version__ = "0.1.0"

__all__ = [
    "BoundedModule",
    "BoundedTensor",
    "LipschitzResult",
    "LocalLipConfig",
    "NormResult",
    "PerturbationLpNorm",
    "certify",
    "keep_freed_memory",
    "masked_spectral_norm",
    "nn",
    "register",
    "unregister",
    "verify",
]


def __getattr__(name: str) -> object:
    """`certify` and `verify` come with their first use: what they take need not be imported to bound."""
    if name == "certify":
        from lirpa_lip.certifying import certify

        return certify
    if name == "verify":
        return import_module("lirpa_lip.verify")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
