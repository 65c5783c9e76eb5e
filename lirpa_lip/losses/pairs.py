"""Lipschitz constants of all pairs of classes from the last layers' rates, in memory linear in the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from lirpa_lip.local.layers import Layers, zero_safe_product
from lirpa_lip.local.linearised import affine_map
from lirpa_lip.network.graph import NetworkGraph


def head_rows(graph: NetworkGraph, source: str) -> Tensor:
    """The matrix (classes, values) from a source of the output to the logits."""
    linear = affine_map(graph, source, graph.output)
    classes = linear.out_shape.numel()
    identity = torch.eye(classes, dtype=graph.dtype, device=graph.device).reshape(classes, *linear.out_shape)
    return linear.adjoint(identity).flatten(1)


def all_pairs(graph: NetworkGraph, layers: Layers, labels: Tensor) -> Tensor:
    """``Σ_s ‖(w_y − w_j) S_s^½‖ · Lip(S_s^½ z_s)`` over the sources s of the logits, (batch, classes); 0 at j = y."""
    total: Tensor | float = 0.0
    for source in graph.sources(graph.output):
        weight = head_rows(graph, source)
        layer = layers.get(source)
        if layer is None:
            total = total + masked_pair_norms(weight, labels, None)
            continue
        mask = None if layer.root is None else layer.root.flatten(1)
        total = total + zero_safe_product(masked_pair_norms(weight, labels, mask), layer.live_rate.unsqueeze(1))
    assert isinstance(total, Tensor)
    return total


def masked_pair_norms(weight: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """‖(w_j − w_y) S_b‖ for every sample and class, (batch, classes), in memory linear in the classes; 0 at j = y.

    Expands the square; a norm that cancels to rounding is taken as 0 there, with gradient 0: it is for training.
    """
    own = weight[labels]
    if mask is None:
        squares = weight.square().sum(1) - 2 * own @ weight.mT + own.square().sum(1, keepdim=True)
    else:
        masked = own * mask.square()
        squares = mask.square() @ weight.square().mT - 2 * masked @ weight.mT + (masked * own).sum(1, keepdim=True)
    is_label = torch.arange(len(weight), device=weight.device) == labels.unsqueeze(1)
    positive = (squares > 0) & ~is_label
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def pair_distances(graph: NetworkGraph, layers: Layers) -> Tensor:
    """`all_pairs` of layers that are the same for every sample, for all pairs of classes: (classes, classes)."""
    total: Tensor | float = 0.0
    for source in graph.sources(graph.output):
        rows, layer = head_rows(graph, source), layers.get(source)
        rate: Tensor | float = 1.0
        if layer is not None:
            rows = rows if layer.root is None else rows * layer.root.flatten(1)
            rate = layer.live_rate
        far = torch.cdist(rows.unsqueeze(0), rows.unsqueeze(0), compute_mode="donot_use_mm_for_euclid_dist")[0]
        total = total + rate * far
    assert isinstance(total, Tensor)
    return total
