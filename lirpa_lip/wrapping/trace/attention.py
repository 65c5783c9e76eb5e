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
        UnsupportedOperatorError: for masks, and what else has no rule.
    """
    reason = _reason(self, query, key_padding_mask, attn_mask)
    if reason:
        raise UnsupportedOperatorError("the model", "MultiheadAttention", reason=reason)
    heads = self.num_heads

    def split(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = F.linear(x, weight, bias)
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    q, k, v = (split(x, *wb) for x, wb in zip((query, key, value), _projections(self), strict=True))
    weights = torch.softmax((q * self.head_dim**-0.5) @ k.transpose(-2, -1), dim=-1)
    joined = (weights @ v).transpose(1, 2).flatten(2)
    out = F.linear(joined, self.out_proj.weight, self.out_proj.bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def _reason(module: nn.MultiheadAttention, query: Tensor, *masks: Tensor | None) -> str | None:
    if any(m is not None for m in masks):
        return (
            "masks take scores to minus infinity, which has no rule here; attend to the tokens that count, by slicing"
        )
    if not module.batch_first or query.ndim != 3:
        return "it takes (batch, tokens, features) here; make it with batch_first=True"
    if module.bias_k is not None or module.add_zero_attn:
        return "add_bias_kv and add_zero_attn have no rule here"
    return "its dropout is on; call .eval() on the model" if module.training and module.dropout > 0 else None


def _projections(module: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of queries, keys and values."""
    if module.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    else:
        weights = list(module.in_proj_weight.chunk(3))
    biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
    return list(zip(weights, biases, strict=True))
