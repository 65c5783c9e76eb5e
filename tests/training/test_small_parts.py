"""Radii, schedules, order of the data, augmentation and the weight average."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lirpa_lip.errors import ConfigError, UnknownMethodError
from lirpa_lip.training import rows
from lirpa_lip.training.ema import WeightAverage
from lirpa_lip.training.epsilon import parse_epsilon, parse_epsilons, rounded_up
from lirpa_lip.training.runlog import COLUMNS, RunLog
from lirpa_lip.training.sampling import augmented, derived_seed, epoch_batches, prefetched, steps_per_epoch
from lirpa_lip.training.schedules import HoldThenDecay, LinearRamp
from lirpa_lip.training.sources import TensorSource


@pytest.mark.parametrize(
    ("text", "value"),
    [("36/255", Fraction(36, 255)), (" 36 / 255", Fraction(12, 85)), ("1.58", Fraction(158, 100)),
     (1.58, Fraction(158, 100)), ("0", Fraction(0)), ("1e-2", Fraction(1, 100)), (2, Fraction(2))],
)  # fmt: skip
def test_epsilon_is_exact(text, value):
    assert parse_epsilon(text) == value


@pytest.mark.parametrize("text", ["", "large", "-0.1", "1/0", "nan", "inf", "0.1,0.2"])
def test_bad_epsilon(text):
    with pytest.raises(ConfigError, match="epsilon"):
        parse_epsilon(text)


def test_epsilons():
    assert parse_epsilons("0.5, 36/255") == {"0.5": Fraction(1, 2), "36/255": Fraction(36, 255)}
    with pytest.raises(ConfigError, match="no epsilon"):
        parse_epsilons(" ,")


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_rounding_never_shrinks_a_ball(numerator, denominator, dtype):
    exact = Fraction(numerator, denominator)
    value = rounded_up(exact, dtype)
    assert Fraction(value) >= exact
    below = torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(-math.inf, dtype=dtype)).item()
    assert Fraction(below) < exact or value == 0


def test_linear_ramp():
    ramp = LinearRamp(0.0, 2.0, warmup=5, length=10)
    assert [ramp(t) for t in (0, 4.9, 5, 10, 15, 99)] == [0, 0, 0, 1.0, 2.0, 2.0]
    assert LinearRamp(1.0, 0.0)(0) == 0.0
    with pytest.raises(ConfigError, match="warmup"):
        LinearRamp(0, 1, warmup=-1)


def test_learning_rate():
    lr = HoldThenDecay(1e-3, 1e-5, hold=175, epochs=300)
    assert lr(0) == lr(175) == 1e-3
    assert lr(237.5) == pytest.approx(1e-4)
    assert lr(300) == pytest.approx(1e-5)
    assert HoldThenDecay(1e-3, 1e-5, 10, 10)(10) == 1e-3
    cosine = HoldThenDecay(1e-3, 1e-5, hold=100, epochs=300, decay="cosine")
    assert cosine(100) == 1e-3 and cosine(300) == pytest.approx(1e-5)
    assert cosine(200) == pytest.approx((1e-3 + 1e-5) / 2)
    assert cosine(150) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (2 + 2**0.5) / 4)
    with pytest.raises(UnknownMethodError, match="cosine"):
        HoldThenDecay(1e-3, 1e-5, 1, 10, decay="linear")
    rising = HoldThenDecay(1e-3, 1e-5, 100, 300, "cosine", rise=4)
    assert [rising(0), rising(1), rising(4)] == [0.0, pytest.approx(2.5e-4), 1e-3]
    assert rising(200) == cosine(200)
    with pytest.raises(ConfigError, match="hold"):
        HoldThenDecay(1e-3, 1e-5, 11, 10)


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch, **options):
        return torch.cat([indices for _, indices in epoch_batches(50, 8, seed, epoch, **options)])

    assert torch.equal(order(0, 3), order(0, 3))
    assert not torch.equal(order(0, 3), order(0, 4)) and not torch.equal(order(0, 3), order(1, 3))
    assert len(set(order(0, 3).tolist())) == 48 == 8 * steps_per_epoch(50, 8)
    assert torch.equal(order(0, 3, first_step=2), order(0, 3)[16:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(processes):
    whole = dict(epoch_batches(50, 8, 0, 0))
    parts = [dict(epoch_batches(50, 8, 0, 0, rank=r, processes=processes)) for r in range(processes)]
    for step, indices in whole.items():
        assert sorted(torch.cat([part[step] for part in parts]).tolist()) == sorted(indices.tolist())
    with pytest.raises(ConfigError, match="multiple of 3"):
        list(epoch_batches(50, 8, 0, 0, processes=3))


def test_prefetching_changes_nothing():
    source = TensorSource(torch.arange(20).reshape(20, 1, 1, 1).float(), torch.arange(20))
    batches = list(epoch_batches(20, 6, 0, 0))
    found = list(prefetched(source, iter(batches)))
    assert [step for step, _, _ in found] == [0, 1, 2]
    assert all(torch.equal(labels, indices) for (_, _, labels), (_, indices) in zip(found, batches, strict=True))
    assert list(prefetched(source, iter([]))) == []


def test_augmentation():
    images = torch.rand(16, 1, 8, 8) + 0.1
    assert augmented(images, "none", 0, 0, 0) is images
    moved = augmented(images, "crop", 0, 0, 0)
    assert torch.equal(moved, augmented(images, "crop", 0, 0, 0))
    assert not torch.equal(moved, augmented(images, "crop", 0, 0, 1))
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    for b in range(16):  # each is a window of its padded self
        assert any(torch.equal(moved[b], padded[b, :, i : i + 8, j : j + 8]) for i in range(9) for j in range(9))
    flipped = augmented(images, "crop-flip", 0, 0, 0)
    mirrored = [torch.equal(flipped[b], moved[b].flip(2)) for b in range(16)]
    assert 2 < sum(mirrored) < 14
    assert all(m or torch.equal(flipped[b], moved[b]) for b, m in enumerate(mirrored))
    with pytest.raises(UnknownMethodError, match="crop-flip"):
        augmented(images, "rotate", 0, 0, 0)


def test_augmentation_does_not_depend_on_the_number_of_processes():
    images = torch.rand(8, 1, 8, 8)
    whole = augmented(images, "crop-flip", 0, 1, 2)
    parts = [augmented(images[r::2], "crop-flip", 0, 1, 2, rank=r, processes=2) for r in range(2)]
    assert all(torch.equal(parts[r], whole[r::2]) for r in range(2))


def test_seeds_differ_by_every_part():
    seeds = {derived_seed("a", 0, 0), derived_seed("a", 0, 1), derived_seed("a", 1, 0), derived_seed("b", 0, 0)}
    assert len(seeds) == 4 and derived_seed("a", 0, 0) == derived_seed("a", 0, 0)


def test_weight_average():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 3.0]):
        nn.init.constant_(model.weight, value)
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.applied_to(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 3.0
    with pytest.raises(ConfigError, match="decay"):
        WeightAverage(model, 1.0)


def test_a_log_is_never_shorter_than_it_was(tmp_path, monkeypatch):
    """Neither for a kill while it is cut to the step of a checkpoint, nor for a row that the disk damaged."""
    path, row = tmp_path / "metrics.csv", dict.fromkeys(COLUMNS, 1)
    log = RunLog(tmp_path, tensorboard=False)
    for step in range(1, 4):
        log.add({**row, "step": step})
    before = path.read_bytes()
    monkeypatch.setattr(rows.os, "replace", lambda *files: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        RunLog(tmp_path, first_step=3, tensorboard=False)
    assert path.read_bytes() == before
    monkeypatch.undo()
    path.write_bytes(before + b"\xff,1\r\n" + b"\0" * 30 + b"\r\nx" + b",1" * 9 + b"\r\n")
    RunLog(tmp_path, first_step=2, tensorboard=False).add({**row, "step": 3})
    assert path.read_bytes() == before
