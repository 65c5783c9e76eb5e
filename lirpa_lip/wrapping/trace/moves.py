"""Operators that only move values, by constant positions: what they do to numbered entries says which goes where."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lirpa_lip.wrapping.trace.dependence import dtype, sizes
from lirpa_lip.wrapping.trace.evaluate import evaluate
from lirpa_lip.wrapping.trace.fold import Step


def move(rewriter: Any, node: Any) -> None:
    """Entries of a sample chosen by their number, and zeros: ``x.flatten(1)[:, positions]`` in another shape."""
    x = next(iter(node.inputs()))
    shape, made, kind = sizes(x), sizes(node.output()), dtype(x)
    if not shape or not made or kind is None or shape[0] != rewriter.batch or made[0] != rewriter.batch:
        return
    source = _source(rewriter, node, shape)
    if source is None:
        return
    count = math.prod(shape[1:])
    like = torch.empty(shape[0], count, dtype=kind)
    flat = rewriter.insert("aten::reshape", [x, rewriter.integers([-1, count])], like)
    positions, taken = (source - 1).clamp(min=0), torch.empty(shape[0], len(source), dtype=kind)
    chosen = [flat, rewriter.constant(1), rewriter.constant(positions)]
    found = rewriter.insert("aten::index_select", chosen, taken)
    if bool((source == 0).any()):
        present = rewriter.constant((source > 0).to(kind).unsqueeze(0))
        found = rewriter.insert("aten::mul", [found, present], taken)
    rewriter.replace(node, rewriter.insert("aten::reshape", [found, rewriter.integers([-1, *made[1:]])], node.output()))


def _source(rewriter: Any, node: Any, shape: list[int]) -> Tensor | None:
    """Of every entry of the output the number of its source in the sample, counted from 1, and 0 where it is zero."""
    arguments = [evaluate(v, rewriter.parameters) for v in list(node.inputs())[1:]]
    if any(a is ... for a in arguments):
        return None
    count = math.prod(shape[1:])
    numbered = torch.arange(1, count + 1, dtype=torch.float64).reshape(1, *shape[1:])
    others = count * torch.arange(shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    found = Step.of(node).run([numbered + others, *arguments])
    sources = found.flatten(1) - torch.where(found.flatten(1) > 0, others.flatten(1), 0.0)
    own = bool(((sources >= 0) & (sources <= count)).all())
    return sources[0].long() if own and bool((sources == sources[:1]).all()) else None


#: Operators of this kind; their other arguments must be constant.
MOVES = {
    f"aten::{name}": move
    for name in """gather take_along_dim index tril triu diagonal rot90 unfold
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d""".split()
}
