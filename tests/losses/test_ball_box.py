"""The largest value of a linear function over ball ∩ box: against a general-purpose solver, and from above always."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lirpa_lip.losses import ball_box
from lirpa_lip.losses.ball_box import worst_case_increase


def problem(seed: int, batch: int = 4, classes: int = 5, features: int = 9):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=g, dtype=torch.float64)
    labels = torch.randint(0, classes, (batch,), generator=g)
    radius = torch.rand(batch, generator=g, dtype=torch.float64) * 2 + 0.05
    upper = torch.rand(batch, features, generator=g, dtype=torch.float64)
    lower = -torch.rand(batch, features, generator=g, dtype=torch.float64)
    return weight, labels, radius, lower, upper


def solved(c: np.ndarray, radius: float, lower: np.ndarray, upper: np.ndarray) -> float:
    result = minimize(
        lambda v: -c @ v,
        np.zeros_like(c),
        jac=lambda v: -c,
        bounds=list(zip(lower, upper, strict=True)),
        constraints=[{"type": "ineq", "fun": lambda v: radius**2 - v @ v, "jac": lambda v: -2 * v}],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return -result.fun


def test_equals_a_general_solver():
    weight, labels, radius, lower, upper = problem(0)
    found = worst_case_increase(weight, labels, radius, lower, upper)
    for b in range(len(labels)):
        for j in range(len(weight)):
            c = (weight[j] - weight[labels[b]]).numpy()
            expected = solved(c, radius[b].item(), lower[b].numpy(), upper[b].numpy())
            assert found[b, j].item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), iterations=st.integers(0, 20), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
def test_never_below_any_feasible_point(seed: int, iterations: int, scale: float):
    """However early the search stops, whatever is feasible scores no more."""
    weight, labels, radius, lower, upper = problem(seed, batch=2, classes=3, features=6)
    radius = radius * scale
    bound = worst_case_increase(weight, labels, radius, lower, upper, iterations=iterations)
    c = weight.unsqueeze(0) - weight[labels].unsqueeze(1)
    for step in torch.logspace(-3, 3, 40, dtype=torch.float64):
        v = torch.minimum(torch.maximum(step * c, lower.unsqueeze(1)), upper.unsqueeze(1))
        norm = v.norm(dim=-1, keepdim=True)
        v = v * torch.where(norm > radius.reshape(-1, 1, 1), radius.reshape(-1, 1, 1) / norm.clamp(min=1e-300), 1.0)
        assert ((c * v).sum(-1) <= bound + 1e-9 * (1 + bound.abs())).all()


def test_more_iterations_only_tighten():
    weight, labels, radius, lower, upper = problem(1, features=40)
    values = [worst_case_increase(weight, labels, radius, lower, upper, iterations=n) for n in (0, 1, 3, 20)]
    assert all((later <= earlier + 1e-12).all() for earlier, later in pairwise(values))
    assert (values[-1] < values[0] - 1e-3).any()


def test_ball_alone_and_box_alone():
    weight, labels, radius, lower, upper = problem(2)
    c = weight.unsqueeze(0) - weight[labels].unsqueeze(1)
    wide = torch.full_like(lower, 1e9)
    ball = worst_case_increase(weight, labels, radius, -wide, wide)
    torch.testing.assert_close(ball, radius.unsqueeze(1) * c.norm(dim=-1))
    box = worst_case_increase(weight, labels, radius + 1e6, lower, upper)
    torch.testing.assert_close(box, torch.maximum(c * lower.unsqueeze(1), c * upper.unsqueeze(1)).sum(-1))


def test_degenerate_cases():
    weight, labels, radius, lower, upper = problem(3, batch=1)
    zero = torch.zeros_like
    assert (worst_case_increase(weight, labels, zero(radius), lower, upper) == 0).all()
    assert (worst_case_increase(weight, labels, radius, zero(lower), zero(upper)) == 0).all()
    assert (worst_case_increase(zero(weight), labels, radius, lower, upper) == 0).all()
    assert worst_case_increase(weight, labels, radius, lower, upper)[0, labels[0]] == 0


def test_gradient():
    weight, labels, radius, lower, upper = problem(4)
    inputs = [t.requires_grad_() for t in (weight, radius, lower, upper)]
    assert torch.autograd.gradcheck(lambda w, r, lo, up: worst_case_increase(w, labels, r, lo, up), inputs)


def test_gradient_is_finite_where_nothing_can_move():
    weight, labels, radius, lower, upper = problem(5)
    inputs = [
        t.requires_grad_() for t in (weight, torch.zeros_like(radius), torch.zeros_like(lower), torch.zeros_like(upper))
    ]
    worst_case_increase(inputs[0], labels, *inputs[1:]).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in inputs)


def test_chunks_change_nothing(monkeypatch):
    weight, labels, radius, lower, upper = problem(6, classes=7)
    inputs = [t.requires_grad_() for t in (weight, radius, lower, upper)]
    whole = worst_case_increase(weight, labels, radius, lower, upper)
    whole_grads = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr(ball_box, "_CHUNK_ELEMENTS", 2 * len(labels) * weight.shape[1])
    parts = worst_case_increase(weight, labels, radius, lower, upper)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), inputs), whole_grads)
