"""Random small maps, masks and scales, entries spread over the whole range: bounds against mpmath, gradients finite."""

from __future__ import annotations

import os
import random

import mpmath
import pytest
import torch
from references.norms import METHODS, exact, exact_norm, solve
from torch import Tensor

from lirpa_lip.errors import NonFiniteError
from lirpa_lip.norms.linear_map import (
    ComposedMap,
    Conv2dMap,
    ConvTranspose2dMap,
    DenseMap,
    DiagonalMap,
    LinearMap,
    SumMap,
)
from lirpa_lip.norms.solve import SOLVERS

#: More for a longer search: ``LIRPA_LIP_FUZZ=3000``.
CASES = int(os.environ.get("LIRPA_LIP_FUZZ", "60"))
SEED = int(os.environ.get("LIRPA_LIP_FUZZ_SEED", "1"))


def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Of a scale anywhere in the range, in three of ten with entries all over it, in three of ten with zeros."""
    narrow = dtype == torch.float32
    kind, t = random.random(), torch.randn(shape, dtype=torch.float64).clamp(-3, 3)
    scale = random.choice([0.0, random.uniform(-20, 20), random.uniform(*((-44, 37) if narrow else (-318, 300)))])
    t = t * 10.0**scale
    if kind < 0.3:
        reach = 30.0 if narrow else random.choice([30.0, 150.0, 300.0])
        t = t * 10.0 ** torch.empty(shape, dtype=torch.float64).uniform_(-reach, reach)
    if kind > 0.7:
        t = torch.where(torch.rand(shape) < 0.3, 0.0, t)
    limit = torch.finfo(dtype).max * 0.9
    return t.clamp(-limit, limit).to(dtype)


def drawn(kind: str, dtype: torch.dtype) -> tuple[LinearMap, mpmath.matrix]:
    n, m = random.randint(1, 5), random.randint(1, 5)
    if kind in ("composed", "sum"):
        size = (m, m) if kind == "composed" else (n, m)
        weights = [tensor(size, dtype) for _ in range(random.randint(2, 4))]
        matrix = exact(weights[0])
        for weight in weights[1:]:
            matrix = matrix * exact(weight) if kind == "composed" else matrix + exact(weight)
        parts = [DenseMap(weight) for weight in weights]
        return (ComposedMap(parts) if kind == "composed" else SumMap(parts)), matrix
    made: dict[str, LinearMap] = {
        "dense": DenseMap(tensor((n, m), dtype)),
        "conv": Conv2dMap(tensor((n, m, 1, 2), dtype), (m, 1, 3)),
        "transposed": ConvTranspose2dMap(tensor((n, m, 1, 2), dtype), (n, 1, 2)),
        "diagonal": DiagonalMap(tensor((m,), dtype), (m,)),
    }
    return made[kind], exact(made[kind].dense())


def masked_norm(matrix: mpmath.matrix, mask_in: Tensor | None, mask_out: Tensor | None) -> mpmath.mpf:
    found = matrix.copy()
    for i in range(found.rows):
        for j in range(found.cols):
            for mask, k in ((mask_in, j), (mask_out, i)):
                found[i, j] *= 1 if mask is None else mpmath.mpf(mask.flatten()[k].item())
    return exact_norm(found)


def test_bounds_of_random_scales_hold() -> None:
    random.seed(SEED)
    torch.manual_seed(SEED)
    for case in range(CASES):
        dtype = random.choice([torch.float32, torch.float64])
        kind = random.choice(["dense", "conv", "transposed", "diagonal", "composed", "sum"])
        with mpmath.workdps(700 if kind in ("composed", "sum") else 60):
            linear_map, matrix = drawn(kind, dtype)
            masks = [
                tensor((3, *shape), dtype).abs() if random.random() < 0.6 else None
                for shape in (linear_map.in_shape, linear_map.out_shape)
            ]
            size = 1 if masks[0] is None and masks[1] is None else 3
            norms = [masked_norm(matrix, *(None if m is None else m[b] for m in masks)) for b in range(size)]
        gradient = random.random() < 0.4
        for leaf in linear_map.tensors():
            leaf.requires_grad_(gradient)
        for method in METHODS:
            if method in ("gram", "schur") and kind in ("composed", "sum"):
                continue
            try:
                result = solve(method, linear_map, *masks)
            except NonFiniteError:
                # of what no number of the type is near
                assert SOLVERS[method].certificate == "estimate" and max(norms) > torch.finfo(dtype).max / 2
                continue
            if result.certified:
                for lower, upper, norm in zip(result.lower.tolist(), result.upper.tolist(), norms, strict=True):
                    assert lower <= norm <= upper, (case, kind, dtype, method, lower, upper, norm)
            if gradient:
                value = torch.where(result.upper.isfinite(), result.upper, 0).sum()
                for found in torch.autograd.grad(value, linear_map.tensors()):
                    assert not found.isnan().any(), (case, kind, dtype, method)


def test_the_search_would_find_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without powers of two taken out, some of these cases fail."""
    monkeypatch.setattr(
        "lirpa_lip.norms.solve.solve_in_range", lambda masked, problem, run, given: (run(problem), None)
    )
    with pytest.raises(AssertionError):
        test_bounds_of_random_scales_hold()
