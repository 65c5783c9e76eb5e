"""``nn.MultiheadAttention`` as it is traced: with the batch axis in front, where PyTorch puts it behind the tokens.

PyTorch's own forward, or its fused one, computes the same for each sample; the comparison of graph and model says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lirpa_lip.errors import UnsupportedOperatorError


@contextmanager
def batch_first() -> Iterator[None]:
    """Within the context multi-head attention is traced as `forward` says, and no encoder layer in one piece."""
    original, fused = nn.MultiheadAttention.forward, torch.backends.mha.get_fastpath_enabled()

    def traced(self: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        if not torch.jit.is_tracing():
            return original(self, *args, **kwargs)
        given = inspect.signature(original).bind(self, *args, **kwargs)
        given.apply_defaults()
        module, query, key, value, *_ = given.arguments.values()
        return forward(module, query, key, value, **dict(list(given.arguments.items())[4:]))

    nn.MultiheadAttention.forward = traced
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        nn.MultiheadAttention.forward = original
        torch.backends.mha.set_fastpath_enabled(fused)


def forward(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``softmax(q kᵀ / √d) v`` for each head, and the weights.

    Raises:
        UnsupportedOperatorError: for what has no rule.
    """
    reason = _reason(self, query)
    if reason:
        raise UnsupportedOperatorError("the model", "MultiheadAttention", reason=reason)
    heads = self.num_heads
    if is_causal and key_padding_mask is None and not need_weights:  # the mask that is given is not read then
        attn_mask = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device).triu(1)

    masks = [_by_head(attn_mask, heads), None if key_padding_mask is None else key_padding_mask[:, None, None]]
    more: list[list[Tensor]] = [[], [], []]  # tokens that every query sees behind the others
    for keys, values in ((self.bias_k, self.bias_v), (0, 0) if self.add_zero_attn else (None, None)):
        if keys is not None:
            shape = key.shape[0], 1, self.embed_dim
            for tokens, added in zip(more[1:], (keys, values), strict=True):
                tokens.append(added.expand(shape) if isinstance(added, Tensor) else key.new_zeros(shape))
            masks = [m if m is None else F.pad(m, (0, 1)) for m in masks]

    def split(x: Tensor, projection: tuple[Tensor, Tensor | None], tokens: list[Tensor]) -> Tensor:
        x = torch.cat([F.linear(x, *projection), *tokens], 1) if tokens else F.linear(x, *projection)
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    q, k, v = (split(*given) for given in zip((query, key, value), _projections(self), more, strict=True))
    scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
    for mask in masks:
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1)
    joined = (weights @ v).transpose(1, 2).flatten(2)
    out = F.linear(joined, self.out_proj.weight, self.out_proj.bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def _by_head(mask: Tensor | None, heads: int) -> Tensor | None:
    """A mask of its own for each sample and head, ``(batch · heads, …)``, as ``(batch, heads, …)``."""
    return mask if mask is None or mask.ndim < 3 else mask.reshape(-1, heads, *mask.shape[1:])


def _reason(module: nn.MultiheadAttention, query: Tensor) -> str | None:
    if not module.batch_first or query.ndim != 3:
        return "it takes (batch, tokens, features) here; make it with batch_first=True"
    return "its dropout is on; call .eval() on the model" if module.training and module.dropout > 0 else None


def _projections(module: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of queries, keys and values."""
    if module.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    else:
        weights = list(module.in_proj_weight.chunk(3))
    biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
    return list(zip(weights, biases, strict=True))
