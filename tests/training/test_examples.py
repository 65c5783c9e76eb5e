"""The examples run, at toy size."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import lirpa_lip

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = CliRunner().invoke(module.main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_train_mnist(tmp_path):
    options = ("--epochs", "2", "--limit", "400", "--certify", "10", "--eps", "0.05", "--out", str(tmp_path))
    text = run("train_mnist", "--dataset", "digits", *options)
    assert "certified" in text and "most robust" in text


def test_train_mnist_on_mnist(tmp_path, shared_data):
    options = ("--epochs", "1", "--limit", "300", "--certify", "2", "--out", str(tmp_path))
    assert "certified" in run("train_mnist", "--data-dir", str(shared_data), *options)


def test_train_own_data(tmp_path):
    text = run("train_own_data", "--epochs", "2", "--out", str(tmp_path))
    assert "lirpa-lip certify" in text
    # The printed command works as it is written, in another process and folder.
    command = text.split("certify with: ")[1].strip()
    assert command.startswith("PYTHONPATH=")
    root = Path(lirpa_lip.__file__).resolve().parents[1]
    command = command.replace("PYTHONPATH=", f"PYTHONPATH={shlex.quote(str(root))}:", 1)
    command = command.replace(" lirpa-lip ", f" {shlex.quote(sys.executable)} -m lirpa_lip.cli ", 1)
    call = f"{command} --limit 4 --pgd-steps 1 --radius-steps 0"
    done = subprocess.run(call, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "certified" in done.stdout


def test_loss_in_your_loop():
    text = run("loss_in_your_loop", "--steps", "120", "--eps", "0.2")
    clean, certified = (float(part.split()[1].rstrip("%,")) for part in text.split(", ")[:2])
    assert clean > 80 and certified > 20, text


@pytest.mark.parametrize("path", sorted((EXAMPLES / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_networks_of_the_configurations(path):
    """Each configuration's network can be built and bounded."""
    import torch

    from lirpa_lip.training.config import config_from, read_config
    from lirpa_lip.training.models import build_model
    from lirpa_lip.training.objective import Objective

    config = config_from(read_config(path))
    shape, classes = {
        "digits": ((1, 8, 8), 10),
        "mnist": ((1, 28, 28), 10),
        "cifar10": ((3, 32, 32), 10),
        "tiny-imagenet": ((3, 64, 64), 200),
    }[config.dataset]
    model = build_model(config.arch, shape, classes, config.activation, threshold=config.threshold)
    x = torch.rand(2, *shape)
    objective = Objective(model, x[:1], config.loss, config.bound, config.sparsity, iterations=config.bound_iterations)
    loss, _ = objective(x, torch.tensor([0, 1]), 0.1, 0.5)
    loss.backward()
    assert torch.isfinite(loss)
