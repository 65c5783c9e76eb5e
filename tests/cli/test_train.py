"""``lirpa-lip train``: flags, files, and what a user reads when something is wrong."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml
from commands import invoke

from lirpa_lip.cli import COMMANDS
from lirpa_lip.cli.train import resolve
from lirpa_lip.errors import ConfigError
from lirpa_lip.training.config import TrainConfig, read_config

TINY = ["--dataset", "digits", "--arch", "cnn-tiny", "--eps", "0.2", "--limit", "200", "--batch-size", "60",
        "--epochs", "1", "--ramp", "1", "--bound", "global-product"]  # fmt: skip


def test_help_lists_the_commands_without_importing_them():
    result = invoke("--help")
    assert result.exit_code == 0 and all(name in result.output for name in COMMANDS)
    assert invoke("nonsense").exit_code == 2


def test_every_setting_is_a_flag():
    text = invoke("train", "--help").output
    for item in fields(TrainConfig):
        assert f"--{item.name.replace('_', '-')}" in text
    assert all(flag in text for flag in ("--config", "--resume"))


def test_trains_and_saves_the_resolved_configuration(tmp_path):
    (tmp_path / "run.yaml").write_text("eps: 36/255\nseed: 3\nlr: 2e-3\n")
    result = invoke("train", "--config", tmp_path / "run.yaml", *TINY, "--seed", "4", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    saved = read_config(tmp_path / "run" / "config.yaml")
    assert (saved["eps"], saved["seed"], saved["lr"]) == ("0.2", 4, 0.002)  # flags win
    assert set(saved) == {item.name for item in fields(TrainConfig)}
    assert "best checkpoint" in result.output and "lirpa-lip certify" in result.output
    again = invoke("train", *TINY, "--out", tmp_path / "run")
    assert again.exit_code != 0 and "--resume" in again.output
    more = invoke("train", "--resume", "--epochs", "2", "--out", tmp_path / "run")
    assert more.exit_code == 0 and "resumed from" in more.output


def test_every_flag_can_be_set_in_a_file(tmp_path):
    changed = {
        "epochs": 7,
        "normalize": True,
        "lr": 0.5,
        "eps": "36/255",
        "ema": 0.5,
        "augment": "crop",
        "threshold": 3.0,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed))
    config = resolve({}, tmp_path / "c.yaml", resume=False)
    assert {name: getattr(config, name) for name in changed} == changed
    assert resolve({"epochs": 9}, tmp_path / "c.yaml", resume=False).epochs == 9
    (tmp_path / "d.yaml").write_text("batch-size: 7\n")  # as the flag is written
    assert resolve({}, tmp_path / "d.yaml", resume=False).batch_size == 7


def test_resuming_takes_the_runs_own_settings(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**TrainConfig().to_dict(), "lr": 0.25}))
    assert resolve({"out": str(tmp_path)}, None, resume=True).lr == 0.25
    assert resolve({"out": str(tmp_path)}, None, resume=False).lr != 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist", "--data-dir", "/no/such/folder"], "does not exist"),
        (["--dataset", "mnits"], "mnist"),
        (["--eps", "large"], "epsilon 'large'"),
        (["--arch", "5c3f"], "4c3f"),
        (["--config", "/no/such/file.yaml"], "cannot be read"),
        (["--resume"], "no checkpoint to resume"),
        (["--batch-size", "100000"], "training images"),
    ],
)
def test_errors_are_one_line_without_a_traceback(tmp_path, arguments, message):
    result = invoke("train", "--dataset", "digits", "--bound", "global-product", "--out", tmp_path / "run", *arguments)
    assert result.exit_code != 0 and message in result.output
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)


def test_unknown_setting_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("epoch: 7\n")
    with pytest.raises(ConfigError, match=r"c\.yaml.*did you mean 'epochs'"):
        resolve({}, tmp_path / "c.yaml", resume=False)
