"""Which versions a result was made with."""

from __future__ import annotations

import sys

import torch

import lirpa_lip


def versions() -> dict[str, str]:
    """Of what computes a bound: this package, torch, auto_LiRPA (which importing this package has imported)."""
    lirpa = getattr(sys.modules.get("auto_LiRPA"), "__version__", "unknown")
    return {"lirpa_lip": lirpa_lip.__version__, "torch": str(torch.__version__), "auto_LiRPA": str(lirpa)}
