"""Settings: YAML in, YAML out, and errors that name the setting."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lirpa_lip.errors import ConfigError, UnknownMethodError
from lirpa_lip.training.config import TrainConfig, config_from, read_config, write_config

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "configs").glob("*.yaml"))


def test_round_trip(tmp_path):
    config = config_from({"eps": "36/255", "lr": "1e-3", "epochs": 3, "ema": None, "normalize": True})
    write_config(config, tmp_path / "config.yaml")
    assert config_from(read_config(tmp_path / "config.yaml")) == config
    assert config.eps == "36/255" and config.lr == 1e-3


def test_every_setting_can_be_written_in_a_file(tmp_path):
    write_config(TrainConfig(), tmp_path / "config.yaml")
    assert set(read_config(tmp_path / "config.yaml")) == {item.name for item in fields(TrainConfig)}


def test_yaml_numbers(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("eps: 1.58\nlr: 1e-3\nbatch-size: 64\nthreshold: 2\n")
    config = config_from(read_config(path))
    assert (config.eps, config.lr, config.batch_size, config.threshold) == ("1.58", 1e-3, 64, 2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"xyzzy": 3}, "known are"),
        ({"epochs": "many"}, "epochs='many' is no int"),
        ({"epochs": 2.5}, "whole number"),
        ({"epochs": 0}, "at least 1"),
        ({"normalize": "yes"}, "true or false"),
        ({"dataset": None}, "dataset needs a value"),
        ({"kappa": 1.5}, "between 0 and 1"),
        ({"sparsity": -1}, "negative"),
        ({"eps": "big"}, "epsilon 'big'"),
        ({"train_eps": "-1"}, "negative"),
    ],
)
def test_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        config_from(values)


def test_choices():
    for name in ("dataset", "loss", "bound", "activation", "augment", "precision"):
        with pytest.raises(UnknownMethodError, match=name):
            config_from({name: "nonsense"})


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "text"])
def test_no_configuration(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "absent.yaml")
    path.write_text("# nothing\n")
    assert read_config(path) == {}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_valid(path):
    config_from(read_config(path), str(path))
