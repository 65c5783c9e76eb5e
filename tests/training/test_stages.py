"""Stages of a certification without a search: nothing is lost, δ holds for all, and who is out costs no more."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import lirpa_lip
from lirpa_lip.errors import NonFiniteError
from lirpa_lip.norms.draw import seeds_of
from lirpa_lip.training import stages
from lirpa_lip.training.attack import survives_pgd
from lirpa_lip.training.certification import CertifySettings, certify_shard, read_rows
from lirpa_lip.training.certifiers import LocalCertifier, make_certifier
from lirpa_lip.training.models import build_model
from lirpa_lip.training.sources import TensorSource


def network_of(activation: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model("cnn-tiny", (1, 8, 8), 4, activation).eval().double()


IMAGES = 12


@cache
def images_of() -> Tensor:
    return torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def images() -> Tensor:
    return images_of()


def certifier_of(name: str, model: nn.Module, x: Tensor, **options) -> LocalCertifier:
    made = make_certifier(name, model, x[:1], radius_steps=0, **options)
    assert isinstance(made, LocalCertifier)
    return made


@cache
def radii_between(activation: str) -> tuple[Fraction, ...]:
    """Radii at which some samples are decided by every stage, and some by none."""
    model, x = network_of(activation), images_of()
    whole = make_certifier("local-lip", model, x[:1], radius_steps=3)(x, model(x).argmax(1), [Fraction(1, 10)])
    found = whole.radius.sort().values
    return (Fraction(float(found[5])),)


@pytest.mark.parametrize(
    "activation, name", [("relu", "sdp-crown"), ("maxmin", "local-lip"), ("clipped_relu", "local-product")]
)
def test_no_verdict_is_lost(activation, name, images, monkeypatch):
    model = network_of(activation)
    predictions = model(images).argmax(1)
    for eps in radii_between(activation):
        with seeds_of(3):
            staged = certifier_of(name, model, images)
            found = staged(images, predictions, [eps])
        with monkeypatch.context() as patched, seeds_of(3):
            patched.setattr(stages, "_FORECAST", ())
            patched.setattr("lirpa_lip.training.certifiers.stages_of", lambda name: (name,))
            plain = certifier_of(name, model, images)
            expected = plain(images, predictions, [eps])
        assert torch.equal(found.radius >= float(eps), expected.radius >= float(eps))
        assert found.worth.delta <= 1e-6
        if name != "local-product":
            assert staged.stages[-1].tried < plain.stages[-1].tried, "nothing was decided before the last stage"


def test_certified_samples_withstand_attacks(images):
    model = network_of("maxmin")
    labels = model(images).argmax(1)
    for eps in radii_between("maxmin"):
        found = lirpa_lip.certify(model, images, labels, eps=eps, radius_steps=0, method="local-lip")
        kept = survives_pgd(model.float(), images.float(), labels, float(eps), steps=10)
        model.double()
        assert any(c.certified for c in found)
        assert all(bool(k) for c, k in zip(found, kept) if c.certified)


def test_delta_is_that_of_all_stages_together(images):
    model = network_of("relu")
    certifier = certifier_of("sdp-crown", model, images, certificate="probabilistic", delta=1e-4)
    verdict = certifier(images, model(images).argmax(1), [Fraction(1, 20), Fraction(1, 5)])
    assert verdict.kind == "probabilistic" and verdict.failure_probability == 1e-4
    # two stages at two radii each, and two global bounds
    shares = [stage.bounded.bound_opts["local_lip"].delta for stage in certifier.stages for _ in range(2)]
    shares += [floor.method.config.delta for floor in certifier._global]
    assert len(shares) == 6 and sum(shares) == pytest.approx(1e-4)


class Counting(stages.Stage):
    """Notes how many samples any of its bounds, or forecasts, has seen."""

    seen: ClassVar[list[int]] = []

    def least_margin(self, batch: stages.Batch) -> Tensor:
        self.seen.append(len(batch.x))
        return super().least_margin(batch)


def test_who_is_out_costs_no_later_stage(images, monkeypatch):
    monkeypatch.setattr("lirpa_lip.training.certifiers.Stage", Counting)
    model = network_of("relu")
    predictions = model(images).argmax(1)
    certifier = certifier_of("local-lip", model, images)
    Counting.seen.clear()
    small = certifier(images, predictions, [Fraction(1, 10**6)])
    assert (small.radius > 0).all() and not Counting.seen  # the global bounds decide them
    wrong = torch.full((len(images),), -torch.inf)
    found = certifier(images, predictions, [Fraction(10)], wrong)
    assert not Counting.seen and (found.radius > 0).all()  # what the global bounds know is said nevertheless
    fell = torch.full((len(images),), 2.0)
    found = certifier(images, predictions, [Fraction(10)], fell)
    assert not Counting.seen and (found.failed == 2.0).all()
    certifier(images, predictions, [Fraction(10)])
    assert Counting.seen == [IMAGES, IMAGES] and [stage.tried for stage in certifier.stages] == [
        0,
        0,
    ]  # as was forecast


def test_wrong_and_attacked_samples_of_a_data_set_are_out(tmp_path, images, monkeypatch):
    monkeypatch.setattr("lirpa_lip.training.certifiers.Stage", Counting)
    model = network_of("relu")
    labels = model(images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 4
    settings = CertifySettings("3", bound="local-lip", pgd_steps=20, radius_steps=0)
    Counting.seen.clear()
    certify_shard(model.float(), TensorSource(images.float(), labels), settings, tmp_path, "id", batch_size=IMAGES)
    rows = read_rows(tmp_path)
    open_ = [r for r in rows if r.prediction == r.label and r.pgd["3"]]
    assert Counting.seen == [len(open_)] * 2 if open_ else not Counting.seen
    assert all(r.failed <= 3 for r in rows if r.prediction == r.label and not r.pgd["3"])
    assert all(math.isfinite(r.radius) for r in rows)
    certify_shard(
        model, TensorSource(images.float(), labels), replace(settings, eps="3,4"), tmp_path, "id", batch_size=IMAGES
    )
    assert [set(r.pgd) for r in read_rows(tmp_path)] == [{"3", "4"}] * IMAGES


def test_without_a_forecast_the_bound_decides(images, monkeypatch):
    model = network_of("relu")
    certifier = certifier_of("local-product", model, images)
    certifier.prepare(1)
    (stage,) = certifier.stages
    least = stage._least

    def narrow(bounded, batch):
        if bounded is stage._forecast:
            raise NonFiniteError("slopes", "float32 is too narrow here")
        return least(bounded, batch)

    monkeypatch.setattr(stage, "_least", narrow)
    certifier(images, model(images).argmax(1), [Fraction(1)])
    assert stage.tried > 0


def test_memory_that_runs_out_leaves_no_larger_delta(images, monkeypatch):
    """Certifiers that could not be made for more radii are made again, not used with the δ of fewer."""
    model = network_of("relu")
    certifier = certifier_of("sdp-crown", model, images, delta=1e-4)
    certifier.prepare(1)

    def full(*args, **options):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("lirpa_lip.training.certifiers.GlobalCertifier", full)
        with pytest.raises(MemoryError):
            certifier.prepare(2)
    certifier.prepare(2)
    deltas = [stage.bounded.bound_opts["local_lip"].delta for stage in certifier.stages]
    deltas += [floor.method.config.delta for floor in certifier._global]
    assert deltas == [pytest.approx(1e-4 / 6)] * 4
