"""The local bounds by name: by stages where the network is sequential, which is fast, else on its traced graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lirpa_lip.errors import UnsupportedOperatorError
from lirpa_lip.losses.composed_bound import SequentialComposed
from lirpa_lip.losses.local_bound import SequentialLocalLip


def local_product_bound(model: nn.Module, sample: Tensor, **options: Any) -> nn.Module:
    """``"local-product"``: the product bound, by stages where the network is sequential, else on its traced graph."""
    try:
        return SequentialLocalLip(model, sample, **options)
    except UnsupportedOperatorError:
        return _graph_bound(model, sample, bound="product", **options)


def local_lip_bound(model: nn.Module, sample: Tensor, **options: Any) -> nn.Module:
    """``"local-lip"``: the smaller of the composed and the product bound, likewise."""
    try:
        return SequentialComposed(model, sample, **options)
    except UnsupportedOperatorError:
        return _graph_bound(model, sample, bound="auto", **options)


def _graph_bound(model: nn.Module, sample: Tensor, **options: Any) -> nn.Module:
    from lirpa_lip.losses.graph_bound import GraphLocalLip  # imports auto_LiRPA: seconds that few need

    return GraphLocalLip(model, sample, **options)
