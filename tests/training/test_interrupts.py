"""A signal ends a run with a checkpoint and a word on how to go on; what is resumed ends as an undisturbed run."""

from __future__ import annotations

import signal

import pytest
import torch
from click.testing import CliRunner

from lirpa_lip.cli import main
from lirpa_lip.errors import CheckpointError, RunInterruptedError
from lirpa_lip.training.checkpoint import checkpoints_in, load_checkpoint, save_checkpoint
from lirpa_lip.training.config import config_from
from lirpa_lip.training.interrupts import Interrupts
from lirpa_lip.training.trainer import Trainer

TINY = {"dataset": "digits", "arch": "mlp-small", "eps": "0.2", "limit": 300, "batch_size": 30, "epochs": 2, "ramp": 1,
        "loss": "plain", "bound": "global-product", "log_every": 4}  # fmt: skip


def trainer(folder, **settings) -> Trainer:
    return Trainer(config_from({**TINY, "out": str(folder), **settings}))


def weights(folder) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints_in(folder / "checkpoints")[-1]).tensors


def signalled_at(run: Trainer, step: int, number: int) -> None:
    inner = run._step

    def signalling(*args):
        if run.state.step == step:
            signal.raise_signal(number)
        return inner(*args)

    run._step = signalling


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 8])  # within an epoch, and at its last step
def test_a_signal_ends_with_a_checkpoint(tmp_path, number, step):
    before = signal.getsignal(number)
    trainer(tmp_path / "whole").fit()
    run = trainer(tmp_path / "cut")
    signalled_at(run, step, number)
    with pytest.raises(RunInterruptedError, match=rf"stopped at step {step + 1}.*--resume --out .*cut") as caught:
        run.fit()
    assert caught.value.signal_number == number and signal.getsignal(number) is before
    again = trainer(tmp_path / "cut")
    again.resume()
    assert again.state.step == step + 1
    again.fit()
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_signal_at_the_very_end_changes_nothing(tmp_path):
    run = trainer(tmp_path)
    signalled_at(run, 17, signal.SIGINT)
    assert run.fit().is_dir() and run.state.step == 18


@pytest.fixture
def own_interrupt():
    """Python's own handler, also where the tests were started in the background by a shell that ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("own_interrupt")
def test_a_second_signal_does_what_it_always_did():
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_certify_says_what_is_kept_and_goes_on(tmp_path, monkeypatch):
    from lirpa_lip.training import certification

    trainer(tmp_path / "run", epochs=1).fit()
    call = [
        "certify",
        str(tmp_path / "run"),
        "--bound",
        "ibp",
        "--limit",
        "20",
        "--batch-size",
        "5",
        "--pgd-steps",
        "0",
    ]
    inner, count = certification._Work.certify, iter(range(100))

    def stopped(self, *args, **options):
        if next(count) == 2:
            signal.raise_signal(signal.SIGTERM)
        return inner(self, *args, **options)

    monkeypatch.setattr(certification._Work, "certify", stopped)
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 128 + signal.SIGTERM and "10 samples are certified and kept" in result.output
    assert "same command" in result.output and "Traceback" not in result.output
    monkeypatch.undo()
    again = CliRunner().invoke(main, call)
    assert again.exit_code == 0 and "20 samples" in again.output and "certifying: 15 of 20" in again.output


def test_resume_takes_a_path(tmp_path):
    """The newest checkpoint is damaged: an earlier one is named, and can be used."""
    trainer(tmp_path, checkpoint_every=4).fit()
    first, last = checkpoints_in(tmp_path / "checkpoints")
    (last / "tensors.safetensors").write_bytes(b"damaged")
    failed = CliRunner().invoke(main, ["train", "--resume", "--epochs", "3", "--out", str(tmp_path)])
    assert failed.exit_code == 1 and f"train --resume {first}" in failed.output
    result = CliRunner().invoke(main, ["train", "--resume", str(first), "--epochs", "3"])
    assert result.exit_code == 0 and f"resumed from {first}" in result.output, result.output
    assert (tmp_path / "checkpoints" / f"aside-{last.name}").is_dir()
    assert load_checkpoint(checkpoints_in(tmp_path / "checkpoints")[-1]).state["step"] == 27
    assert CliRunner().invoke(main, ["train", "--resume", str(tmp_path), "--epochs", "3"]).exit_code == 0
    missing = CliRunner().invoke(main, ["train", "--resume", str(tmp_path / "none")])
    assert missing.exit_code == 1 and "does not exist" in missing.output


def test_a_log_that_cannot_be_written_says_how_to_go_on(tmp_path, monkeypatch):
    from lirpa_lip.training import trainer as module

    run, add, count = trainer(tmp_path, checkpoint_every=4), module.RunLog.add, iter(range(100))

    def full(self, row):
        if next(count) == 3:
            raise OSError(28, "No space left on device")
        add(self, row)

    monkeypatch.setattr(module.RunLog, "add", full)
    with pytest.raises(CheckpointError, match=r"the disk is full.*--resume --out"):
        run.fit()


def test_a_lost_process_is_said_to_be_one(tmp_path):
    from lirpa_lip.training.processes import lost_process

    text = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:23221"
    assert lost_process(RuntimeError(text)) and not lost_process(RuntimeError("shapes do not match"))
    run = trainer(tmp_path)
    run.processes = 1
    run._step = lambda *args: (_ for _ in ()).throw(RuntimeError(text))
    with pytest.raises(RuntimeError, match="pair"):  # alone, it is no such thing
        run.fit()


def test_a_checkpoint_of_another_format_or_other_settings(tmp_path):
    import json

    trainer(tmp_path, epochs=1).fit()
    path = checkpoints_in(tmp_path / "checkpoints")[-1]
    loaded = load_checkpoint(path)
    state = json.loads(json.dumps(loaded.state))
    from lirpa_lip.training.checkpoint import Checkpoint
    from lirpa_lip.training.run_state import config_of, model_from

    def changed(format=2, drop=(), **more) -> Checkpoint:
        config = {k: v for k, v in {**state["config"], **more}.items() if k not in drop}
        return Checkpoint(loaded.tensors, {**state, "config": config}, format)

    with pytest.warns(UserWarning, match="momentum, nesterov"):
        assert config_of(changed(nesterov=True, momentum=0.9)).dataset == "digits"
    assert config_of(changed(drop=("ema", "saturation", "seed"))).saturation == 1.0
    model_from(changed(drop=("precision",)))
    assert config_of(changed(1, bound="local-lip")).bound == "local-product"  # as it was meant then
    assert config_of(changed(1, bound="composed")).bound == "local-lip"
    assert config_of(changed(2, bound="local-lip")).bound == "local-lip"
    with pytest.raises(CheckpointError, match="no settings"):
        config_of(Checkpoint({}, {}))
    with pytest.raises(CheckpointError, match="no shape, classes"):
        model_from(Checkpoint(loaded.tensors, {**state, "data": {}}))
    run = trainer(tmp_path, epochs=1)
    save_checkpoint(tmp_path / "other", Checkpoint(loaded.tensors, {k: v for k, v in state.items() if k != "step"}), 1)
    with pytest.raises(CheckpointError, match="at which step"):
        run.resume(tmp_path / "other" / "step-00000001")
