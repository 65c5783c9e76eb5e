"""The global bound against dense SVDs, and that an estimate stays below it."""

from __future__ import annotations

import pytest
import torch
from networks.classifiers import SHAPE, dense_product, small_network, worst_rate
from torch import nn

from lirpa_lip.errors import UnknownMethodError
from lirpa_lip.losses import LipschitzBound, make_bound
from lirpa_lip.losses.global_bound import GlobalBound
from lirpa_lip.network.sequential import SequentialReader
from lirpa_lip.training.models import ACTIVATIONS

X = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 2])


def dense_pairs(model: nn.Module) -> torch.Tensor:
    weight = list(model.modules())[-1].weight
    return dense_product(SequentialReader(model, X).graph()) * (weight[LABELS].unsqueeze(1) - weight).norm(dim=2)


@pytest.mark.parametrize("certificate", ["deterministic", "probabilistic", "auto"])
def test_certificates_equal_svd_from_above(certificate: str):
    model = small_network()
    output = GlobalBound(model, X, certificate)(X, 0.1, LABELS)
    expected = dense_pairs(model)
    assert (output.pair_lipschitz >= expected * (1 - 1e-12)).all()
    torch.testing.assert_close(output.pair_lipschitz, expected, rtol=5e-3, atol=0)
    torch.testing.assert_close(output.logits, model(X))


def test_estimate_rises_to_the_norm_from_below():
    model = small_network()
    bound = GlobalBound(model, X, iterations=1)
    true = dense_pairs(model)
    for _ in range(300):
        value = bound(X, 0.0, LABELS).pair_lipschitz
        assert (value <= true * (1 + 1e-9)).all()
    torch.testing.assert_close(value, true, rtol=5e-3, atol=0)  # close singular values converge slowly


def test_estimate_holds_still_in_eval_mode():
    bound = GlobalBound(small_network(), X).eval()
    first, second = (bound(X, 0.0, LABELS).pair_lipschitz for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bounds_sampled_rates(activation: str):
    model = small_network(activation)
    output = GlobalBound(model, X, "deterministic")(X, 0.0, LABELS)
    assert (worst_rate(model, X, LABELS, 0.7) <= output.pair_lipschitz + 1e-9).all()


def test_gradient_matches_the_svds():
    model = small_network()
    bound = GlobalBound(model, X, iterations=3000)
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    found = torch.autograd.grad(bound(X, 0.0, LABELS).pair_lipschitz.sum(), weights)
    expected = torch.autograd.grad(dense_pairs(model).sum(), weights)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3 * b.abs().max().item())


def test_labels_default_to_the_prediction():
    model = small_network()
    bound = GlobalBound(model, X, "deterministic")
    predicted = model(X).argmax(dim=1)
    torch.testing.assert_close(bound(X, 0.1).pair_lipschitz, bound(X, 0.1, predicted).pair_lipschitz)
    assert isinstance(bound, LipschitzBound)


def test_a_zero_layer_gives_zero_and_learns_again():
    model = small_network()
    nn.init.zeros_(model[1].weight)
    output = GlobalBound(model, X)(X, 0.1, LABELS)
    assert (output.pair_lipschitz == 0).all()
    output.pair_lipschitz.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_linear_model_has_the_norm_of_its_rows():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 5)).double()
    weight = model[1].weight
    output = GlobalBound(model, X, "deterministic")(X, 0.1, LABELS)
    torch.testing.assert_close(output.pair_lipschitz, (weight[LABELS].unsqueeze(1) - weight).norm(dim=2))


def test_errors():
    with pytest.raises(UnknownMethodError, match="local-lip"):
        make_bound("nonsense", small_network(), X)
    with pytest.raises(UnknownMethodError, match="deterministic"):
        GlobalBound(small_network(), X, "sure")


def test_networks_that_are_not_sequential_are_traced():
    """Pooling is no module of the fast reader."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5)).double()
    pairs = GlobalBound(model, X, iterations=200)(X, 0.1, LABELS).pair_lipschitz
    assert (worst_rate(model, X, LABELS, 0.5) <= pairs * (1 + 1e-6) + 1e-9).all()
    pairs.sum().backward()
    assert all(p.grad is not None for p in (model[0].weight, model[3].weight))


def test_activations_in_a_row_and_at_the_end():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Tanh(), nn.Linear(5, 5), nn.ReLU()).double()
    output = GlobalBound(model, X, "deterministic")(X, 0.1, LABELS)
    assert (worst_rate(model, X, LABELS, 0.5) <= output.pair_lipschitz + 1e-9).all()
    torch.testing.assert_close(output.pair_lipschitz, GlobalBound(model, X, iterations=2000)(X, 0.1, LABELS)
                               .pair_lipschitz, rtol=5e-3, atol=1e-9)  # fmt: skip
