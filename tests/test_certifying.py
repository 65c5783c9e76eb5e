"""`lirpa_lip.certify`: what is said of each sample is true, and one call says all of it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import lirpa_lip
from lirpa_lip.errors import ConfigError, NonFiniteError, ShapeError, TrainingModeError, UnknownMethodError


def known_network() -> nn.Module:
    """logit_0 − logit_1 = 2 x_0 − 0.5: the boundary is at x_0 = 0.25."""
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
        model[0].bias.copy_(torch.tensor([-0.25, 0.25]))
    return model.eval()


X = torch.tensor([[0.75, 0, 0], [0.35, 0, 0], [0.0, 0, 0], [0.25, 0, 0]])


def test_radii_of_a_known_network():
    found = lirpa_lip.certify(known_network(), X, torch.tensor([0, 0, 0, 0]), eps="1/5")
    assert [c.certified for c in found] == [True, False, False, False]
    assert [c.prediction for c in found][:3] == [0, 0, 1] and [c.label for c in found] == [0, 0, 0, 0]
    for c, true in zip(found, (0.5, 0.1, 0.25), strict=False):
        assert 0.99 * true <= c.radius <= true + 1e-7
    assert found[3].radius == -math.inf  # a tie
    assert {(c.kind, c.delta) for c in found} == {("deterministic", 0.0)}


def test_without_labels_predictions_are_certified():
    found = lirpa_lip.certify(known_network(), X[:3], eps=0.05)
    assert [c.certified for c in found] == [True, True, True]
    assert [c.label for c in found] == [c.prediction for c in found]


def test_probabilistic_certificates_say_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)).eval()
    found = lirpa_lip.certify(model, X, eps=0.01, certificate="probabilistic", delta=1e-3, method="local-product")
    assert {(c.kind, c.delta) for c in found} == {("probabilistic", 1e-3)}


def test_the_model_and_the_callers_chance_are_left_alone():
    model, state = known_network(), torch.get_rng_state()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    first = lirpa_lip.certify(model, X, eps=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32 and first == lirpa_lip.certify(model, X, eps=0.1)
    assert lirpa_lip.certify(model, X[:0], eps=0.1) == []


def test_errors():
    model = known_network()
    cases = [
        (dict(eps=-1), ConfigError), (dict(eps="big"), ConfigError), (dict(eps=math.nan), ConfigError),
        (dict(delta=2), ConfigError), (dict(method="magic"), UnknownMethodError), (dict(batch_size=0), ConfigError),
        (dict(radius_steps=-1), ConfigError), (dict(y=torch.zeros(2, dtype=torch.long)), ShapeError),
        (dict(y=torch.zeros(4)), ShapeError),
    ]  # fmt: skip
    for options, error in cases:
        with pytest.raises(error):
            lirpa_lip.certify(model, X, **options)
    with pytest.raises(NonFiniteError):
        lirpa_lip.certify(model, X * math.nan)
    with pytest.raises(TrainingModeError):
        lirpa_lip.certify(known_network().train(), X)
    with pytest.raises(ShapeError, match="two classes"):
        lirpa_lip.certify(nn.Linear(3, 1).eval(), X)


def test_it_is_imported_with_its_first_use():
    code = (
        "import sys, lirpa_lip; assert 'certify' in lirpa_lip.__all__; "
        "assert not any(n.startswith('lirpa_lip.training') for n in sys.modules); lirpa_lip.certify; "
        "assert 'lirpa_lip.certifying' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_inference_is_passed_on_or_refused():
    from dataclasses import fields

    if "inference" in {item.name for item in fields(lirpa_lip.LocalLipConfig)}:
        assert lirpa_lip.certify(known_network(), X[:1], eps=0.1, inference="float32")[0].radius <= 0.5
    else:
        with pytest.raises(ConfigError, match="inference"):
            lirpa_lip.certify(known_network(), X[:1], eps=0.1, inference="float32")


def test_a_batch_too_large_for_memory_is_halved(monkeypatch):
    from lirpa_lip import certifying

    whole = lirpa_lip.certify(known_network(), X, eps="1/5")
    made, original = [], certifying.make_certifier

    def small_memory(*args, **options):
        certifier = original(*args, **options)

        def call(x, predictions, eps, refuted):
            made.append(len(x))
            if len(x) > limit:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
            return certifier(x, predictions, eps, refuted)

        return call

    monkeypatch.setattr(certifying, "make_certifier", small_memory)
    limit = 1
    assert lirpa_lip.certify(known_network(), X[:3], eps="1/5") == whole[:3]
    assert made == [3, 2, 1, 1, 1]
    limit = 0
    with pytest.raises(RuntimeError, match="allocate"):
        lirpa_lip.certify(known_network(), X[:1], eps="1/5")


def test_progress_goes_to_standard_error_once_it_takes_long(capsys, monkeypatch):
    from lirpa_lip import certifying
    from lirpa_lip.training import progress

    lirpa_lip.certify(known_network(), X, eps=0.1, batch_size=1, progress=True)
    assert capsys.readouterr().err == ""  # less than two seconds
    monkeypatch.setattr(certifying, "said_late", lambda *args: progress.said_late(*args, after=0.0))
    lirpa_lip.certify(known_network(), X, eps=0.1, batch_size=1, progress=True)
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1].startswith("certifying: 4 of 4 samples, left 0:00:00")
    assert "certifying: 1 of 4 samples" in said.err
    lirpa_lip.certify(known_network(), X, eps=0.1, batch_size=1)  # no terminal
    lirpa_lip.certify(known_network(), X, eps=0.1, batch_size=1, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", ["4 apples", "-1", "nan", True, 1.5, "1KB", 1000, ""])
def test_a_size_of_memory_that_is_none(size):
    with pytest.raises(ConfigError, match="max_memory"):
        lirpa_lip.certify(known_network(), X, eps=0.1, max_memory=size)
