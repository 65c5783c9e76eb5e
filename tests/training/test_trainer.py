"""The trainer on the digits: it learns, resumes to the bit, and stops cleanly where it must."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lirpa_lip.errors import CheckpointError, DivergedError
from lirpa_lip.training.checkpoint import checkpoints_in, find_checkpoint, load_checkpoint, save_checkpoint
from lirpa_lip.training.config import config_from, read_config
from lirpa_lip.training.run_state import model_from
from lirpa_lip.training.runlog import read_log
from lirpa_lip.training.trainer import Trainer

TINY = {"dataset": "digits", "arch": "cnn-tiny", "eps": "0.2", "limit": 300, "batch_size": 30, "epochs": 2, "ramp": 1,
        "lr": 5e-3, "augment": "crop-flip", "log_every": 4}  # fmt: skip


def trainer(folder, **settings) -> Trainer:
    return Trainer(config_from({**TINY, "out": str(folder), **settings}))


def weights(folder) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints_in(folder / "checkpoints")[-1]).tensors


class Stop(BaseException):
    """Stands for a process that ends without a word."""


def stop_after(run: Trainer, steps: int) -> None:
    step = run._step

    def counted(*args):
        if run.state.step >= steps:
            raise Stop
        return step(*args)

    run._step = counted
    with pytest.raises(Stop):
        run.fit()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "gloro", "bound": "global-product"},
        {"loss": "gloro", "bound": "local-product", "ema": 0.9, "sparsity": 0.01},
        {"loss": "bcp", "bound": "local-product", "activation": "clipped_maxmin", "kappa": 0.3},
        {"loss": "emma", "bound": "local-lip"},
    ],
    ids=lambda s: f"{s['loss']}-{s['bound']}",
)
def test_resumed_run_ends_with_the_same_weights(tmp_path, settings):
    """Stopped in the middle of an epoch, between two checkpoints: every tensor of the end is equal, bit for bit."""
    trainer(tmp_path / "whole", checkpoint_every=4, **settings).fit()
    stop_after(trainer(tmp_path / "killed", checkpoint_every=4, **settings), 14)
    assert load_checkpoint(checkpoints_in(tmp_path / "killed" / "checkpoints")[-1]).state["step"] == 12
    again = trainer(tmp_path / "killed", checkpoint_every=4, **settings)
    again.resume()
    again.fit()
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == resumed.keys() and any(name.startswith("bound.") for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    rows = [read_log(tmp_path / run / "metrics.csv") for run in ("whole", "killed")]
    steps = [[(r["step"], r["split"]) for r in part if int(r["step"]) % 9 == 0] for part in rows]
    assert steps[0] == steps[1] and len(steps[0]) == len(set(steps[0]))


def test_a_run_of_the_version_with_one_start_vector_a_layer_goes_on(tmp_path):
    settings = {"loss": "gloro", "bound": "global-product", "checkpoint_every": 4}
    stop_after(trainer(tmp_path, **settings), 5)
    kept = load_checkpoint(checkpoints_in(tmp_path / "checkpoints")[-1])
    blocks = {name for name in kept.tensors if ".block_" in name}
    before = {name.replace("block", "vector"): kept.tensors[name][:1] for name in blocks}
    rest = {name: tensor for name, tensor in kept.tensors.items() if name not in blocks}
    save_checkpoint(tmp_path / "checkpoints", replace(kept, tensors={**rest, **before}), 4)
    again = trainer(tmp_path, **settings)
    again.resume()
    assert blocks and again.state.step == 4
    again.fit()
    assert weights(tmp_path).keys() >= blocks


def test_a_step_depends_on_the_seed(tmp_path):
    for seed in (0, 1):
        trainer(tmp_path / str(seed), seed=seed, epochs=1, bound="global-product").fit()
    name = "model.0.weight"
    assert not torch.equal(weights(tmp_path / "0")[name], weights(tmp_path / "1")[name])


def test_it_learns(tmp_path):
    """Two epochs of the digits: far above chance, and certified (by the estimate) above nothing."""
    run = trainer(tmp_path, limit=None, batch_size=64, epochs=3, bound="local-product", augment="none", eps="0.1")
    best = run.fit()
    validation = [row for row in read_log(tmp_path / "metrics.csv") if row["split"] == "validation"]
    assert len(validation) == 3
    assert float(validation[-1]["clean"]) > 0.8 and float(validation[-1]["certified_estimate"]) > 0.2
    assert best.name.startswith("best-")
    assert config_from(read_config(tmp_path / "config.yaml")) == run.config
    model = model_from(load_checkpoint(best))
    images, labels = run.data.validation.batch(torch.arange(len(run.data.validation)))
    clean = (model(images).argmax(1) == labels).float().mean().item()
    assert clean == pytest.approx(max(float(r["clean"]) for r in validation if float(r["clean"]) == clean), abs=1e-6)


def test_best_is_chosen_on_validation_after_the_ramp(tmp_path):
    run = trainer(tmp_path, epochs=3, ramp=2, bound="global-product")
    scores = iter([0.9, 0.5, 0.4])
    real = run._row

    def fake(split, *args):
        row = real(split, *args)
        return {**row, "certified_estimate": next(scores)} if split == "validation" else row

    run._row = fake
    assert run.fit().name == "best-00000018"  # the first epoch is still within the ramp: its 0.9 does not count
    assert load_checkpoint(tmp_path / "checkpoints" / "best-00000018").state["best"] == 0.5


def test_nan_stops_with_the_last_checkpoint_intact(tmp_path):
    run = trainer(tmp_path, bound="global-product", checkpoint_every=4)
    objective = run.objective.forward

    def poisoned(*args):
        loss, counted = objective(*args)
        return (loss * math.nan if run.state.step == 6 else loss), counted

    run.objective.forward = poisoned
    with pytest.raises(DivergedError, match=r"step 6.*intact.*--resume"):
        run.fit()
    found = checkpoints_in(tmp_path / "checkpoints")
    assert [p.name for p in found] == ["step-00000004"]
    assert all(torch.isfinite(t).all() for t in load_checkpoint(found[0]).tensors.values())


def test_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    from lirpa_lip.training import checkpoint as module

    run = trainer(tmp_path, bound="global-product", checkpoint_every=4)
    write, count = module._write, iter(range(100))

    def full(path, content):
        if next(count) >= 2:  # two files are one checkpoint
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        run.fit()
    assert load_checkpoint(find_checkpoint(tmp_path)).state["step"] == 4


def test_resume_refuses_another_configuration(tmp_path):
    trainer(tmp_path, epochs=1, bound="global-product").fit()
    with pytest.raises(CheckpointError, match="loss was 'gloro', is 'bcp'"):
        trainer(tmp_path, loss="bcp", bound="global-product").resume()
    longer = trainer(tmp_path, epochs=2, bound="global-product")
    longer.resume()
    longer.fit()
    assert longer.state.step == 18
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        trainer(tmp_path / "elsewhere", bound="global-product").resume()


def test_plain_loss_warmup_and_averages(tmp_path):
    run = trainer(tmp_path, loss="plain", bound="global-product", ema=0.5, epochs=1, normalize=False)
    run.fit()
    tensors = weights(tmp_path)
    assert any(name.startswith("average.") for name in tensors)
    model = model_from(load_checkpoint(checkpoints_in(tmp_path / "checkpoints")[-1]))
    torch.testing.assert_close(model[0].weight, tensors["average.0.weight"])


def test_schedules_reach_the_loss(tmp_path):
    """ε and κ as the loss sees them: zero and one during the warm-up, the final values after the ramp."""
    run = trainer(tmp_path, epochs=4, warmup=1, ramp=2, bound="global-product", train_eps="0.3", kappa=0.25)
    seen, forward = [], run.objective.forward

    def spy(x, labels, eps, kappa):
        seen.append((eps, kappa))
        return forward(x, labels, eps, kappa)

    run.objective.forward = spy
    run.fit()
    assert seen[:9] == [(0.0, 1.0)] * 9
    assert seen[-9:] == [pytest.approx((0.3, 0.25))] * 9
    ramp = seen[9:27]
    assert ramp == sorted(ramp, key=lambda pair: pair[0]) and ramp[9][0] == pytest.approx(0.15)


@pytest.mark.parametrize("bound", ["global-product", "local-product", "local-lip"])
def test_bf16_forward(tmp_path, bound):
    """The forward pass may be bfloat16; weights, logged numbers and everything that is saved are float32."""
    run = trainer(tmp_path, epochs=3, bound=bound, precision="bf16", loss="bcp", augment="none", eps="0.05", kappa=0.5)
    run.fit()
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}
    validation = [row for row in read_log(tmp_path / "metrics.csv") if row["split"] == "validation"]
    assert float(validation[-1]["clean"]) > 0.3 and math.isfinite(float(validation[-1]["loss"]))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_trains_on_a_gpu(tmp_path, precision):
    run = trainer(tmp_path, bound="local-product", precision=precision, augment="none", eps="0.05")
    assert run.accelerator.device.type == "cuda"
    run.fit()
    assert all(torch.isfinite(t).all() for t in weights(tmp_path).values())


def test_starts_from_the_weights_of_another_run(tmp_path):
    trainer(tmp_path / "cheap", bound="global-product", ema=0.9, epochs=1).fit()
    expected = model_from(load_checkpoint(find_checkpoint(tmp_path / "cheap"))).state_dict()
    run = trainer(tmp_path / "dear", start_from=str(tmp_path / "cheap"), bound="local-product", lr=1e-30, end_lr=1e-30)
    run.fit()
    found = model_from(load_checkpoint(find_checkpoint(tmp_path / "dear"))).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_that_goes_on_needs_the_weights_it_started_from_no_more(tmp_path):
    trainer(tmp_path / "cheap", bound="global-product", epochs=1).fit()
    (tmp_path / "cheap").rename(tmp_path / "moved")
    settings = {"start_from": str(tmp_path / "moved"), "bound": "global-product", "checkpoint_every": 3}
    stop_after(trainer(tmp_path / "dear", **settings), 5)
    (tmp_path / "moved").rename(tmp_path / "cheap")
    run = trainer(tmp_path / "dear", **settings)
    run.resume()
    assert run.state.step == 3
    run.fit()


@pytest.mark.parametrize("change, message", [({"arch": "mlp-small"}, "another network"), ({}, "no checkpoint")])
def test_weights_that_cannot_be_started_from(tmp_path, change, message):
    if change:
        trainer(tmp_path / "cheap", bound="global-product", epochs=1).fit()
    run = trainer(tmp_path / "dear", start_from=str(tmp_path / "cheap"), **change)
    with pytest.raises(CheckpointError, match=message):
        run.fit()
