"""The verifier: `lirpa_lip.verify(model, x, labels, eps=…)`, and what it is made of.

The package can be called itself, so that ``lirpa_lip.verify`` is one name for both: Python sets it to this module as
soon as anything imports a file in it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from lirpa_lip.verify.api import verify
from lirpa_lip.verify.input_region import InputRegion
from lirpa_lip.verify.properties import Case, OutputRow, Property, corridor, linear, stays_first
from lirpa_lip.verify.records import Verdict
from lirpa_lip.verify.settings import VerifySettings

__all__ = [
    "Case",
    "InputRegion",
    "OutputRow",
    "Property",
    "Verdict",
    "VerifySettings",
    "corridor",
    "linear",
    "stays_first",
    "verify",
]


class _Callable(ModuleType):
    """A module that is called as the function of its own name."""

    __doc__ = __doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return verify(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
