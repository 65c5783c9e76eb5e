"""Bounds of other methods against what their papers say, dense oracles and sampled points."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.comparison import METHODS, make_method
from lirpa_lip.local import relaxation
from lirpa_lip.local.baselines import global_layers, global_lipschitz, relaxed_lower, sdp_crown_layers
from lirpa_lip.local.bounds import prepare
from lirpa_lip.local.norm_budget import NormBudget
from lirpa_lip.local.propagate import planned_norms
from lirpa_lip.local.relaxation import OpenNeurons
from lirpa_lip.margin import margin_specification

EXACT = LocalLipConfig(certificate="deterministic")


def mlp(activation=nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 9), activation(), nn.Linear(9, 7), activation(), nn.Linear(7, 3)).double().eval()


def setting(model: nn.Module, x: torch.Tensor, eps, composed: bool = False):
    bounded = BoundedModule(model, torch.zeros_like(x[:1]))
    region_input = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=eps)),)
    graph, region, _ = prepare(bounded, region_input, EXACT)
    norm = NormBudget(EXACT, planned_norms(graph, replace(EXACT, bound="auto" if composed else "product")))
    return graph, region, global_layers(graph, norm, composed)


def sdp_crown_lower(graph, region, c, layers, steps):
    return relaxed_lower(graph, region, c, sdp_crown_layers(graph, region, layers), steps)


def dense_norm(a: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(a, 2)


def test_global_product_is_the_product_of_singular_values():
    model = mlp()
    w1, w2, w3 = (model[i].weight.detach() for i in (0, 2, 4))
    graph, _, layers = setting(model, torch.randn(2, 6, dtype=torch.float64), 0.5)
    c = margin_specification(torch.tensor([0, 2]), 3, torch.float64)
    found = global_lipschitz(graph, c, layers)
    expected = (c @ w3).norm(dim=-1) * dense_norm(w1) * dense_norm(w2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (found >= expected * (1 - 1e-12)).all()


def test_global_composed_is_at_most_liplt_and_the_product():
    """LipLT on ReLU: every slope is ½ ± ½, so the terms are norms of products of ½W and W."""
    model = mlp()
    w1, w2, w3 = (model[i].weight.detach() for i in (0, 2, 4))
    graph, _, layers = setting(model, torch.randn(1, 6, dtype=torch.float64), 0.5, composed=True)
    c = margin_specification(torch.tensor([1]), 3, torch.float64)
    found = global_lipschitz(graph, c, layers, composed=True)
    rows = c @ w3
    r1 = dense_norm(w1)
    r2 = 0.5 * (dense_norm(w2 @ w1) + dense_norm(w2) * r1)  # Lip(z_2)
    liplt = (rows @ w2 @ w1).norm(dim=-1) / 4 + (rows @ w2).norm(dim=-1) / 4 * r1 + rows.norm(dim=-1) / 2 * r2
    product = rows.norm(dim=-1) * dense_norm(w2) * r1
    assert (found <= torch.minimum(liplt, product) * (1 + 1e-6)).all()
    # no Lipschitz bound lies below gradients anywhere
    for x in 3 * torch.randn(200, 1, 6, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda t: model(t)[0], x)[:, 0]
        assert ((c[0] @ jacobian).norm(dim=-1) <= found[0]).all()


def papers_offset(c, g, centre, rho, multiplier):
    """h of SDP-CROWN's theorem, with φ = min(c − g − λẑ, g + λẑ, 0)."""
    phi = torch.minimum(torch.minimum(c - g - multiplier * centre, g + multiplier * centre), torch.zeros_like(c))
    return -0.5 * (multiplier * (rho**2 - centre.square().sum()) + phi.square().sum() / multiplier)


@pytest.mark.parametrize("steps, tolerance", [(40, 1e-4), (relaxation._STEPS, 1e-2)])
@pytest.mark.parametrize("seed", range(6))
def test_offset_is_the_papers(seed, steps, tolerance, monkeypatch):
    """One layer over a ball: never looser than the best multiplier of a fine grid, never above a sampled minimum."""
    monkeypatch.setattr(relaxation, "_STEPS", steps)
    torch.manual_seed(seed)
    centre, rho = torch.randn(1, 8, dtype=torch.float64), 1.3
    # all of the ball as the network's input, and the activation first
    model = nn.Sequential(nn.ReLU(), nn.Linear(8, 2)).double().eval()
    graph, region, layers = setting(model, centre, rho)
    (layer,) = sdp_crown_layers(graph, region, layers).values()
    neurons = OpenNeurons.of(layer, region.eps)
    c, g = torch.randn(8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    rows = neurons.take(-c.reshape(1, 1, -1))  # support is an upper bound: of −cᵀf
    slopes = neurons.take(g.reshape(1, 1, -1))
    ours = -neurons.support(rows, slopes).item() + float(c @ centre[0].clamp(min=0) - (c * g) @ centre[0])
    grid = torch.logspace(-3, 2, 4000, dtype=torch.float64)
    paper = max(float(papers_offset(c, c * g, centre[0], rho, m)) for m in grid)
    assert ours >= paper - tolerance * (1 + abs(paper))
    step = torch.randn(20000, 8, dtype=torch.float64)
    step *= rho * torch.rand(20000, 1, dtype=torch.float64) ** (1 / 8) / step.norm(dim=1, keepdim=True)
    z = centre + step
    gap = z.clamp(min=0) @ c - z @ (c * g)
    assert ours <= gap.min().item() + 1e-9


def test_papers_example():
    """Figure 1 of the paper: −ReLU(x₁) − ReLU(x₂) over the unit ball, slopes ½: offset −1/√2."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 1)).double().eval()
    graph, region, layers = setting(model, torch.zeros(1, 2, dtype=torch.float64), 1.0)
    (layer,) = sdp_crown_layers(graph, region, layers).values()
    neurons = OpenNeurons.of(layer, region.eps)
    value = neurons.support(torch.ones(1, 1, 2, dtype=torch.float64), torch.full((1, 1, 2), 0.5, dtype=torch.float64))
    assert value.item() == pytest.approx(0.5**0.5, rel=1e-6)


def test_sdp_crown_holds_and_gains_from_steps():
    model = mlp()
    x, eps = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0.0, 0.4, 1.5], dtype=torch.float64)
    graph, region, layers = setting(model, x, eps)
    c = margin_specification(torch.tensor([0, 1, 2]), 3, torch.float64)
    few, many = (sdp_crown_lower(graph, region, c, layers, steps) for steps in (1, 30))
    assert (many >= few - 1e-9).all() and (many[2] > few[2] + 1e-6).any()
    at = torch.einsum("bso,bo->bs", c, model(x).detach())
    torch.testing.assert_close(many[0], at[0])  # a ball of radius 0 is a point
    for _ in range(300):
        step = torch.randn(3, 6, dtype=torch.float64)
        y = x + step * (eps / step.norm(dim=1)).unsqueeze(1)
        assert (torch.einsum("bso,bo->bs", c, model(y).detach()) >= many - 1e-9).all()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.LeakyReLU])
def test_other_activations(activation):
    model = mlp(activation)
    x = torch.randn(2, 6, dtype=torch.float64)
    graph, region, layers = setting(model, x, 0.5, composed=True)
    c = torch.eye(3, dtype=torch.float64).expand(2, -1, -1)
    found = global_lipschitz(graph, c, layers, composed=True)
    lower = sdp_crown_lower(graph, region, c, layers, 3)
    assert torch.isfinite(found).all() and torch.isfinite(lower).all()
    for _ in range(100):
        step = torch.randn(2, 6, dtype=torch.float64)
        moved = model(x + 0.5 * step / step.norm(dim=1, keepdim=True)).detach()
        assert (moved >= lower - 1e-9).all()
        assert ((moved - model(x).detach()).abs() <= 0.5 * found + 1e-9).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_sound(name):
    """Lower bounds of margins against sampled points, through the table that benchmarks and commands use."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 4)
    ).eval()
    x, eps = torch.rand(3, 1, 5, 5), 0.3
    c = margin_specification(torch.tensor([0, 1, 2]), 4)
    with torch.no_grad():
        method = make_method(name, model, x, steps=3)
        bounds = method.lower(x, c, eps)
        found = method.lipschitz(x, c, eps)
    assert bounds.lower.shape == (3, 3) and bounds.certificate in ("deterministic", "probabilistic")
    assert not bounds.lower.requires_grad
    assert found is None or (found.upper > 0).all()
    at = torch.einsum("bso,bo->bs", c, model(x).detach())
    assert (bounds.lower <= at + 1e-5).all()
    for _ in range(100):
        step = torch.randn(3, 25)
        # within [0, 1] too, where the methods that know of it look
        y = (x + (step * eps * (1 - 1e-5) / step.norm(dim=1, keepdim=True)).reshape(x.shape)).clamp(0, 1)
        moved = torch.einsum("bso,bo->bs", c, model(y).detach())
        assert (moved >= bounds.lower - 1e-5).all()
        if found is not None:
            reach = (y - x).flatten(1).norm(dim=1, keepdim=True)
            assert ((moved - at).abs() <= found.upper * reach + 1e-5).all()


def test_unknown_method():
    with pytest.raises(ValueError, match="sdp-crown"):
        make_method("magic", mlp(), torch.zeros(1, 6))
