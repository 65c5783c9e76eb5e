"""From bounds of Jacobian entries to bounds of its norm: per row, and of the whole matrix, in ℓ∞, ℓ₂ and ℓ₁.

``norm`` is that of both sides: ``‖·‖_p → ‖·‖_p`` for the whole matrix, ``‖·‖_p → |·|`` for one row, whose constant is
the dual norm of its gradient (ℓ₁ for p = ∞). A convex function of an entry in ``[l, u]`` lies below its chord; the
sum of chords is a linear function of the row, so that one more push bounds the norm without taking every entry at its
worst.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lirpa_lip.jacobian.forward import Interval
from lirpa_lip.jacobian.tangents import Backward, push_tangent
from lirpa_lip.network.graph import NetworkGraph
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.linear_map import DenseMap
from lirpa_lip.regions.sizes import safe_norm

NORMS = (math.inf, 2, 1)


def row_norms(graph: NetworkGraph, result: Backward, norm: float, trace: dict | None = None) -> Tensor:
    """Upper bounds of each row's constant, ``(batch, rows)``.

    Args:
        trace: where given, receives the tangents of the chords' push, ``(batch, rows, 1, *shape)`` at each activation.
    """
    lower, upper = result.cotangents[graph.input]
    largest = torch.maximum(lower.abs(), upper.abs())
    if norm == 1:
        value = largest.flatten(2).amax(-1)
        if trace is not None:
            peak = largest.flatten(2).argmax(-1, keepdim=True)
            tangent = torch.zeros_like(largest).flatten(2).scatter(2, peak, 1.0).reshape(largest.shape)
            push_tangent(graph, graph.input, (tangent * (upper + lower).sign()).unsqueeze(2), result, trace)
        return value
    if norm == 2:
        return _euclidean(graph, result, lower, upper, largest, trace)
    direct = largest.flatten(2).sum(-1)
    slope, offset = _absolute_chord(lower, upper)
    crossing = (lower < 0) & (upper > 0)
    # all entries by their chords; and those of known sign alone, with the others at their worst
    known = torch.where(crossing, 0.0, slope)
    rest = torch.where(crossing, largest, 0.0).flatten(2).sum(-1)
    pushed = push_tangent(graph, graph.input, torch.stack([slope, known], 2), result, trace)
    if trace is not None:
        for name in trace:
            trace[name] = trace[name][:, :, :1]
    value = torch.minimum(pushed[:, :, 0] + offset.flatten(2).sum(-1), pushed[:, :, 1] + rest)
    return _rounded(torch.minimum(direct, value), direct)


def _absolute_chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """``|J| ≤ slope·J + offset`` on ``[lower, upper]``."""
    crossing = (lower < 0) & (upper > 0)
    width = torch.where(crossing, upper - lower, 1.0)
    sign = torch.where(upper <= 0, -1.0, 1.0).to(lower.dtype)
    slope = torch.where(crossing, (upper + lower) / width, sign)
    return slope, torch.where(crossing, -2 * upper * lower / width, 0.0)


def _euclidean(
    graph: NetworkGraph, result: Backward, lower: Tensor, upper: Tensor, largest: Tensor, trace: dict | None
) -> Tensor:
    """``√Σ J²`` with ``J² ≤ (l + u) J − l u``, and the entries at their worst."""
    direct = safe_norm(largest.flatten(2))
    pushed = push_tangent(graph, graph.input, (lower + upper).unsqueeze(2), result, trace)[:, :, 0]
    squares = pushed - (lower * upper).flatten(2).sum(-1)
    slack = 1e-12 * direct.square()
    return _rounded(torch.minimum(direct, (squares + slack).clamp(min=0).sqrt()), direct)


def _rounded(value: Tensor, size: Tensor) -> Tensor:
    """Room for the rounding of the last sums; a NaN (∞ − ∞) is no bound, so infinity."""
    value = value + 1e-12 * size
    return torch.where(torch.isnan(value), torch.inf, value)


def whole_norm(rows: Tensor, entries: Interval, norm: float) -> Tensor:
    """Upper bound of the whole matrix's norm from its rows' constants and its entries, ``(batch,)``.

    ℓ∞: the largest row. ℓ₁: the largest column of the entries at their worst. ℓ₂: the least of the Frobenius norm
    ``(Σ rows²)^½``, ``(‖·‖₁‖·‖∞)^½``, ``‖max(|l|, |u|)‖₂`` and ``‖(l + u)/2‖₂ + ‖(u − l)/2‖₂``; the last two are
    norms of entrywise larger matrices, or of a centre and an entrywise larger rest.
    """
    if norm == math.inf:
        return rows.amax(1)
    lower, upper = (t.flatten(2) for t in entries)
    largest = torch.maximum(lower.abs(), upper.abs())
    columns = largest.sum(1).amax(-1) * (1 + 1e-12)
    if norm == 1:
        return columns
    frobenius = rows.square().sum(1).sqrt() * (1 + 1e-12)
    schur = (columns * largest.sum(2).amax(-1)).sqrt() * (1 + 1e-12)
    value = torch.minimum(frobenius, schur)
    usable = torch.isfinite(largest).all(-1).all(-1)
    for sample in usable.nonzero().flatten().tolist():
        worst = spectral_norm(largest[sample])
        split = spectral_norm((lower[sample] + upper[sample]) / 2) + spectral_norm((upper[sample] - lower[sample]) / 2)
        value[sample] = min(float(value[sample]), worst, split * (1 + 1e-12))
    return value


def spectral_norm(matrix: Tensor) -> float:
    """Certified upper bound of a small matrix's largest singular value."""
    return float(masked_spectral_norm(DenseMap(matrix), certificate="deterministic").upper.max())
