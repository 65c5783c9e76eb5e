"""The public interface: what it returns, and the one clear error for each bad input."""

from __future__ import annotations

import math

import auto_LiRPA
import numpy as np
import pytest
import torch
from sampling import assert_sound
from torch import nn

import lirpa_lip
from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
from lirpa_lip.errors import (
    CertificateError,
    ConfigError,
    LirpaLipError,
    NonFiniteError,
    ShapeError,
    TrainingModeError,
    UnknownMethodError,
    UnsupportedNormError,
    UnsupportedOperatorError,
)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.ReLU(), nn.Linear(4, 3))


X = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def ball(x=X, eps=0.1, norm=2):
    return (BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps)),)


def wrapped(net, **settings) -> BoundedModule:
    return BoundedModule(net, X[:1], bound_opts={"local_lip": LocalLipConfig(**settings)})


def test_shapes_and_sides(net):
    bounded = wrapped(net)
    lower, upper = bounded.compute_bounds(x=ball(), method="local-lip")
    assert lower.shape == upper.shape == (2, 3) and lower.dtype == torch.float32
    assert (lower <= upper).all()
    assert bounded.last_certificate[0] in ("deterministic", "probabilistic")
    rows = torch.randn(2, 5, 3)
    lower, upper = bounded.compute_bounds(ball(), None, rows, "local-lip", bound_upper=False)
    assert lower.shape == (2, 5) and upper is None
    lower, upper = bounded.compute_bounds(x=ball(), C=rows, method="LOCAL-LIP-CROWN", bound_lower=False)
    assert lower is None and upper.shape == (2, 5)
    assert bounded.local_lipschitz(x=ball(), C=rows).upper.shape == (2, 5)
    assert bounded.local_lipschitz(x=ball()).upper.shape == (2,)


def test_float64_networks(net):
    bounded = BoundedModule(net.double(), X[:1].double())
    lower, upper = bounded.compute_bounds(x=ball(X.double()), method="local-lip")
    assert lower.dtype == torch.float64
    c = torch.eye(3, dtype=torch.float64).expand(2, -1, -1)
    assert_sound(net, X.double(), 0.1, c, lower.detach(), upper.detach(), count=50, tol=1e-12)


def test_certificate_kinds(net):
    for kind, probability in (("deterministic", 0.0), ("probabilistic", 1e-4)):
        result = wrapped(net, certificate=kind, delta=1e-4).local_lipschitz(x=ball())
        assert result.certificate == kind and result.failure_probability == probability
    result = wrapped(net, certificate="estimate").local_lipschitz(x=ball())
    assert result.certificate == "estimate" and math.isnan(result.failure_probability)


def test_estimates_are_no_certificates(net):
    """A solver that only approaches from below cannot be asked for a certificate."""
    with pytest.raises((CertificateError, ConfigError)):
        wrapped(net, norm_method="power").compute_bounds(x=ball(), method="local-lip")


def test_register_and_back(net):
    plain = auto_LiRPA.BoundedModule
    lirpa_lip.register()
    lirpa_lip.register()
    try:
        bounded = plain(net, X[:1])
        lower, _ = bounded.compute_bounds(x=ball(), method="local-lip")
        ours = BoundedModule(net, X[:1]).compute_bounds(x=ball(), method="local-lip")
        assert torch.allclose(lower, ours[0], rtol=1e-2, atol=1e-3)
        assert bounded.local_lipschitz(x=ball()).upper.shape == (2,)
        assert bounded.compute_bounds(x=ball(), method="CROWN")[0].shape == (2, 3)
    finally:
        lirpa_lip.unregister()
    assert not hasattr(plain, "local_lipschitz")


def test_auto_lirpa_methods_still_work(net):
    bounded = wrapped(net)
    for method in ("IBP", "CROWN-IBP", "CROWN", "backward"):
        assert bounded.compute_bounds(x=ball(), method=method)[0].shape == (2, 3)


def test_methods_that_we_do_not_list_are_auto_lirpas_to_know(net, monkeypatch):
    monkeypatch.setattr(lirpa_lip.dispatch, "LIRPA_METHODS", ("crown",))
    lower, upper = wrapped(net).compute_bounds(x=ball(), method="CROWN-IBP")
    assert_sound(net, X, 0.1, torch.eye(3).expand(2, -1, -1), lower.detach(), upper.detach(), count=20)
    with pytest.raises(UnknownMethodError, match=r"'locallip'.*'local-lip'.*'crown'"):
        wrapped(net).compute_bounds(x=ball(), method="locallip")


@pytest.mark.parametrize("method", ["dynamic-forward", "dynamic-forward+backward", "dynamic-forward+crown"])
def test_dynamic_forward_where_auto_lirpa_has_it(method):
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    bounded = BoundedModule(model, X[:1])
    if method not in lirpa_lip.dispatch.LIRPA_METHODS:
        assert auto_LiRPA.__version__ == "0.3"
        with pytest.raises(UnknownMethodError, match="'forward'"):
            bounded.compute_bounds(x=ball(norm=np.inf), method=method)
        return
    lower, upper = (t.detach() for t in bounded.compute_bounds(x=ball(norm=np.inf), method=method))
    box = PerturbationLpNorm(norm=np.inf, x_L=X - 0.1, x_U=X + 0.1)
    again = bounded.compute_bounds((BoundedTensor(X, box),), method=method)
    torch.testing.assert_close(again, (lower, upper), check_dtype=False)
    values = torch.stack([model(X + 0.1 * torch.randn_like(X).sign()) for _ in range(200)]).detach()
    assert (lower <= values.amin(0) + 1e-5).all() and (upper >= values.amax(0) - 1e-5).all()


def test_image_box_from_the_perturbation_or_the_settings(net):
    eps = 1.5
    free = wrapped(net).compute_bounds(x=ball(eps=eps), method="local-lip")[0]
    boxed = wrapped(net, image_box=(0.0, 1.0)).compute_bounds(x=ball(eps=eps), method="local-lip")[0]
    own = (BoundedTensor(X, PerturbationLpNorm(norm=2, eps=eps, x_L=torch.zeros_like(X), x_U=torch.ones_like(X))),)
    same = wrapped(net).compute_bounds(x=own, method="local-lip")[0]
    assert (boxed >= free - 1e-4).all() and (boxed > free + 1e-4).any()
    assert torch.allclose(same, boxed, rtol=1e-2, atol=1e-2)


class Steps(nn.Module):
    def forward(self, x):
        return torch.floor(x).flatten(1)


ERRORS = [
    (lambda b: b.compute_bounds(x=ball(), method="locallip"), UnknownMethodError),
    (lambda b: b.local_lipschitz(x=ball(), method="locallip"), UnknownMethodError),
    (lambda b: b.compute_bounds(x=ball(norm=np.inf), method="local-lip"), UnsupportedNormError),
    (lambda b: b.compute_bounds(x=ball(norm=1), method="local-lip"), UnsupportedNormError),
    (lambda b: b.local_lipschitz(x=ball(), norm=3), UnsupportedNormError),
    (lambda b: b.compute_bounds(x=ball(torch.rand(2, 1, 6, 5)), method="local-lip"), ShapeError),
    (lambda b: b.compute_bounds(x=(X,), method="local-lip"), ShapeError),
    (lambda b: b.compute_bounds(x=ball(), C=torch.ones(2, 4, 7), method="local-lip"), ShapeError),
    (lambda b: b.compute_bounds(x=ball(), C=torch.full((2, 1, 3), torch.nan), method="local-lip"), NonFiniteError),
    (lambda b: b.compute_bounds(x=ball(X * torch.nan), method="local-lip"), NonFiniteError),
    (lambda b: b.compute_bounds(x=ball(X / 0), method="local-lip"), NonFiniteError),
    (lambda b: b.compute_bounds(x=ball(eps=-0.1), method="local-lip"), ConfigError),
    (lambda b: b.compute_bounds(x=ball(eps=float("nan")), method="local-lip"), NonFiniteError),
    (lambda b: b.compute_bounds(x=ball(eps=torch.ones(5)), method="local-lip"), ShapeError),
    (lambda b: b.compute_bounds(x=ball(), method="local-lip", bound_lower=False, bound_upper=False), ConfigError),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_bad_calls(net, number):
    call, error = ERRORS[number]
    with pytest.raises(error) as caught:
        call(wrapped(net))
    assert isinstance(caught.value, LirpaLipError) and len(str(caught.value)) > 20


def test_plain_perturbation_of_auto_lirpa_is_checked_too(net):
    """A negative radius in auto_LiRPA's own class, which does not check."""
    raw = (BoundedTensor(X, auto_LiRPA.PerturbationLpNorm(norm=2, eps=-0.1)),)
    with pytest.raises(ConfigError):
        wrapped(net).compute_bounds(x=raw, method="local-lip")


def test_weights_that_are_not_finite(net):
    with torch.no_grad():
        net[3].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="BoundLinear"):
        wrapped(net).compute_bounds(x=ball(), method="local-lip")


def test_unsupported_operator_is_named():
    with pytest.raises(UnsupportedOperatorError, match="floor"):
        bounded = BoundedModule(Steps(), X[:1])
        bounded.compute_bounds(x=ball(), method="local-lip")


def test_training_mode_batch_norm():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(TrainingModeError):
        BoundedModule(net.train(), X).compute_bounds(x=ball(), method="local-lip")
    BoundedModule(net.eval(), X).compute_bounds(x=ball(), method="local-lip")


def test_dropout_in_eval_mode_is_the_identity():
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    lower, upper = BoundedModule(net, X[:1]).compute_bounds(x=ball(), method="local-lip")
    c = torch.eye(2).expand(2, -1, -1)
    assert_sound(net, X, 0.1, c, lower.detach(), upper.detach(), count=50)


def test_overflowing_networks_are_refused_not_certified(net):
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.mul_(1e30)
    bounded = BoundedModule(net.double(), X[:1].double())
    try:
        lower, upper = bounded.compute_bounds(x=ball(X.double(), eps=1e300), method="local-lip")
    except (NonFiniteError, ConfigError):
        return
    assert (lower == -torch.inf).all() or torch.isfinite(lower).all()
    assert not torch.isnan(lower).any() and not torch.isnan(upper).any()


def test_the_last_certificate_is_that_of_the_last_call() -> None:
    bounded = BoundedModule(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3))
    x = (BoundedTensor(torch.zeros(1, 3), PerturbationLpNorm(norm=2, eps=0.1)),)
    assert bounded.last_certificate is None
    bounded.compute_bounds(x=x, method="local-lip")
    assert bounded.last_certificate == ("deterministic", 0.0)
    bounded.compute_bounds(x=x, method="crown")
    assert bounded.last_certificate is None
    bounded.local_lipschitz(x)
    assert bounded.last_certificate == ("deterministic", 0.0)
    with pytest.raises(LirpaLipError):
        bounded.compute_bounds(x=x, method="local-lip", C=torch.zeros(1, 1, 7))
    assert bounded.last_certificate is None
