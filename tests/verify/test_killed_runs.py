"""A run that is killed or stopped keeps every verdict, and ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from networks.files import convolutional

from lirpa_lip.cli import main
from lirpa_lip.verify.rows import read_entries

ROOT = Path(__file__).resolve().parents[2]
COUNT = 12


@pytest.fixture
def command(tmp_path):
    network = convolutional(tmp_path / "net.onnx")
    x = np.random.RandomState(1).rand(COUNT, 1, 6, 6).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    options = ["--data", str(tmp_path / "x.npz"), "--eps", "0.2", "--no-branch"]
    return ["verify", str(network), *options, "--out"]


def start(command, out) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "lirpa_lip.cli", *command, str(out)]
    return subprocess.Popen(whole, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process, out, count: int) -> None:
    while len(read_entries(out)) < count and process.poll() is None:
        time.sleep(0.02)


def kept(out) -> dict:
    return {i: (e.verdict.status, e.verdict.lower, e.verdict.upper) for i, e in read_entries(out).items()}


@pytest.mark.slow
def test_kill_stop_and_go_on(command, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "cut"
    assert CliRunner().invoke(main, [*command, str(whole)]).exit_code == 0
    out.mkdir()
    (out / "verify.json").write_text((whole / "verify.json").read_text())  # the same random starts
    for number, rows in ((signal.SIGKILL, 2), (signal.SIGTERM, 4)):
        process = start(command, out)
        wait_for_rows(process, out, rows)
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
        assert process.returncode in (-number, 128 + number)
        assert rows <= len(kept(out)) < COUNT
        if number == signal.SIGTERM:
            assert "verdicts are kept" in errors and "goes on from there" in errors
    result = CliRunner().invoke(main, [*command, str(out)])
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == COUNT + 1
    assert kept(out) == kept(whole)
    assert json.loads((out / "summary.json").read_text())["instances"] == COUNT
