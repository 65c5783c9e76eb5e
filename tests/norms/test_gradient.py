"""Norms are differentiable in weights and masks, at repeated singular values and at zero too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.linear_map import ComposedMap, Conv2dMap, DenseMap, DiagonalMap, LinearMap

CERTIFICATES = ("deterministic", "probabilistic", "estimate")


def build(name: str, weight: Tensor) -> LinearMap:
    if name == "dense":
        return DenseMap(weight)
    if name == "conv":
        return Conv2dMap(weight, (2, 4, 5), padding=1)
    scale = torch.linspace(0.1, 1, 120, dtype=torch.float64).reshape(3, 2, 4, 5)
    return ComposedMap([Conv2dMap(weight, (2, 4, 5), padding=1), DiagonalMap(scale, (2, 4, 5))])


@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize("name", ["dense", "conv", "composed"])
def test_gradients_are_those_of_the_svd(name: str, certificate: str) -> None:
    """Against the derivative of float64 singular values, for weights and non-negative masks, of either value."""
    weight = torch.randn((6, 9) if name == "dense" else (3, 2, 3, 3), dtype=torch.float64, requires_grad=True)
    linear_map = build(name, weight)
    mask_in = (torch.rand(3, *linear_map.in_shape).double() + 0.2).requires_grad_()
    mask_out = (torch.rand(3, *linear_map.out_shape).double() + 0.2).requires_grad_()

    options = {"certificate": certificate, "rtol": 1e-13, "max_iterations": 200}
    result = masked_spectral_norm(linear_map, mask_in, mask_out, **options)
    matrix = linear_map.dense() * mask_out.flatten(1).unsqueeze(2) * mask_in.flatten(1).unsqueeze(1)
    inputs = (weight, mask_in, mask_out)
    expected = torch.autograd.grad(torch.linalg.svdvals(matrix)[:, 0].sum(), inputs)
    for value in (result.lower, result.upper):
        for mine, theirs in zip(torch.autograd.grad(value.sum(), inputs, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=1e-5)


def test_gradcheck_by_finite_differences() -> None:
    """torch's own gradcheck on the estimate, whose values are the singular values to rounding."""
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    mask_in = (torch.rand(2, 6).double() + 0.2).requires_grad_()
    mask_out = (torch.rand(2, 4).double() + 0.2).requires_grad_()

    def norm(weight: Tensor, mask_in: Tensor, mask_out: Tensor) -> Tensor:
        torch.manual_seed(0)
        options = {"certificate": "estimate", "rtol": 1e-14, "max_iterations": 200}
        return masked_spectral_norm(DenseMap(weight), mask_in, mask_out, **options).upper

    assert torch.autograd.gradcheck(norm, (weight, mask_in, mask_out), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_a_repeated_top_value_gives_a_subgradient(certificate: str) -> None:
    """``sigma(B) >= sigma(A) + <gradient, B - A>`` for all B, which is what a subgradient is; and it has norm one."""
    weight = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64)).requires_grad_()
    result = masked_spectral_norm(DenseMap(weight), certificate=certificate, rtol=1e-12, max_iterations=50)
    (gradient,) = torch.autograd.grad(result.lower.sum(), weight)
    assert torch.linalg.matrix_norm(gradient, "nuc").item() == pytest.approx(1.0, rel=1e-6)
    for _ in range(50):
        other = torch.randn(4, 4, dtype=torch.float64) * 3
        linear = 2.0 + (gradient * (other - weight.detach())).sum()
        assert torch.linalg.svdvals(other)[0] >= linear - 1e-6


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_nothing_left_has_norm_and_gradient_zero(certificate: str) -> None:
    weight = torch.randn(5, 7, requires_grad=True)
    for dead in ([0], [0, 1, 2]):
        mask_in = torch.ones(3, 7)
        mask_in[dead] = 0
        mask_in.requires_grad_()
        result = masked_spectral_norm(DenseMap(weight), mask_in, certificate=certificate)
        assert (result.upper[dead] == 0).all() and (result.lower[dead] == 0).all()
        gradients = torch.autograd.grad(result.upper.sum() + result.lower.sum(), (weight, mask_in))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[1][dead] == 0).all()
        if len(dead) == 3:
            assert (gradients[0] == 0).all()


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_zero_weights_have_gradient_zero(certificate: str) -> None:
    weight = torch.zeros(5, 7, requires_grad=True)
    result = masked_spectral_norm(DenseMap(weight), torch.ones(2, 7), certificate=certificate)
    assert (result.upper == 0).all()
    (gradient,) = torch.autograd.grad(result.upper.sum(), weight)
    assert gradient.isfinite().all()


def test_values_do_not_change_with_the_gradient() -> None:
    """The factor that carries the gradient is exactly one: a bound stays the bound it was."""
    weight = torch.randn(40, 60)
    mask = (torch.rand(4, 60) > 0.5).float()
    for certificate in CERTIFICATES:
        results = []
        for w in (weight, weight.clone().requires_grad_()):
            generator = torch.Generator().manual_seed(0)
            results.append(masked_spectral_norm(DenseMap(w), mask, certificate=certificate, generator=generator))
        assert not results[0].upper.requires_grad and results[1].upper.requires_grad
        if certificate == "estimate":  # with vectors at hand it is |A v| rather than the Ritz value
            torch.testing.assert_close(results[0].upper, results[1].upper.detach(), rtol=1e-6, atol=0)
        else:
            assert torch.equal(results[0].upper, results[1].upper.detach())


def test_no_graph_goes_through_the_iterations() -> None:
    """As many autograd nodes for one iteration as for forty."""

    def nodes(iterations: int) -> int:
        weight = torch.randn(30, 40, requires_grad=True)
        options = {"certificate": "estimate", "rtol": 1e-15, "max_iterations": iterations}
        result = masked_spectral_norm(DenseMap(weight), torch.ones(2, 40), **options)
        seen, queue = set(), [result.upper.grad_fn]
        while queue:
            node = queue.pop()
            if node is not None and node not in seen:
                seen.add(node)
                queue += [parent for parent, _ in node.next_functions]
        return len(seen)

    assert nodes(1) == nodes(40)


def test_tensors_of_a_map_may_depend_on_each_other() -> None:
    """A weight, and a mask made of it: each path counts once, and none of the graph outside is used up."""
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def gradient(norm) -> Tensor:
        mask = weight.square().sum(0).sqrt().expand(2, 5)
        value = norm(mask)
        (mine,) = torch.autograd.grad(value.sum() + mask.sum(), weight)
        return mine

    options = {"certificate": "estimate", "rtol": 1e-13, "max_iterations": 100}
    mine = gradient(lambda mask: masked_spectral_norm(DenseMap(weight), mask, **options).upper)
    exact = gradient(lambda mask: torch.linalg.svdvals(weight * mask.unsqueeze(1))[:, 0])
    torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-9)


def test_graphs_are_kept_where_asked_and_weights_may_not_change() -> None:
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    result = masked_spectral_norm(DenseMap(weight), certificate="deterministic")
    first, second = (torch.autograd.grad(result.upper.sum(), weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (lower,) = torch.autograd.grad(result.lower.sum(), weight, retain_graph=True)
    torch.testing.assert_close(lower, first, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(result.upper.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(result.upper.sum(), weight)
