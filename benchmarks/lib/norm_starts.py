"""What a few products reach of the converged norm, from start vectors that all samples share.

Two ways to spend k pairs of products on a sample: k Lanczos steps from one shared vector, or one pair on each of k
shared vectors and the best of their span (block Krylov, one step).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lib.norm_problems import Layer, active_layers, images, network
from lirpa_lip.norms import SharedStart, masked_spectral_norm
from lirpa_lip.norms.linear_map import MaskedMap

BATCH, BATCHES = 64, 8


def starts(name: str) -> Iterator[dict[str, object]]:
    """Mean share of the converged norm over layers and samples of the last batch."""
    problem = active_layers(network(name, "trained"), images(name, BATCH * BATCHES))
    batches = [
        [layer.batch(slice(first, first + BATCH)) for layer in problem] for first in range(0, BATCH * BATCHES, BATCH)
    ]
    last = batches[-1]
    truth = [converged(layer).upper for layer in last]
    leading = [leading_vectors([batch[i] for batch in batches[:-1]]) for i in range(len(problem))]
    for pairs in (1, 2, 3):
        options = {"certificate": "estimate", "max_iterations": pairs}
        rings = [SharedStart() for _ in problem]
        for batch in batches:
            reached = [_norm(layer, start=ring, **options) for layer, ring in zip(batch, rings, strict=True)]
        found = {
            "shared start": reached,
            "shared block": [block_estimate(layer, v[:pairs]) for layer, v in zip(last, leading, strict=True)],
            "random start": [_norm(layer, **options) for layer in last],
        }
        for method, values in found.items():
            share = torch.stack([value / exact for value, exact in zip(values, truth, strict=True)])
            yield {
                "method": method,
                "iterations": pairs,
                "eliminated": "inactive",
                "value": share.mean().item(),
                "worst_error": 1 - share.min().item(),
                "setting": "mean share of the converged norm, eighth batch",
                "note": f"of the product {share.prod(0).mean().item():.4f}",
            }


def _norm(layer: Layer, **options) -> Tensor:
    return masked_spectral_norm(*layer.arguments, **options).upper


def converged(layer: Layer, rtol: float = 1e-6):
    options = {"rtol": rtol, "max_iterations": 400, "vectors": True}
    return masked_spectral_norm(*layer.arguments, certificate="estimate", **options)


def leading_vectors(seen: list[Layer]) -> Tensor:
    """``(k, *in_shape)``: principal directions of the converged right vectors of earlier batches."""
    right = torch.cat([converged(layer, 1e-3).right for layer in seen])
    directions = torch.linalg.svd(right.flatten(1), full_matrices=False).Vh
    return directions.reshape(-1, *right.shape[1:])


def block_estimate(layer: Layer, block: Tensor) -> Tensor:
    """``max |A V c| / |V c|`` over c, for the block's vectors on each sample's mask as columns of V, ``(B,)``."""
    masked = MaskedMap(*layer.arguments)
    size = len(layer.mask_out)
    vectors = torch.stack([v if layer.mask_in is None else v * layer.mask_in for v in block.unsqueeze(1)], 1)
    basis = torch.linalg.qr(vectors.expand(size, *vectors.shape[1:]).flatten(2).mT).Q.mT
    reached = [masked.forward(column.reshape(size, *layer.map.in_shape)).flatten(1) for column in basis.unbind(1)]
    return torch.linalg.svdvals(torch.stack(reached, 1))[:, 0]
