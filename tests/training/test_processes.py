"""Real processes: a run that is killed with SIGKILL, and two processes that share the work over gloo."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lirpa_lip.training.certification import read_rows
from lirpa_lip.training.checkpoint import checkpoints_in, load_checkpoint
from lirpa_lip.training.runlog import read_log

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [*("train", "--dataset", "digits", "--arch", "cnn-tiny", "--eps", "0.2", "--limit", "600"),
         *("--batch-size", "30", "--ramp", "1", "--lr", "5e-3", "--augment", "crop-flip")]  # fmt: skip


def command(*arguments: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "lirpa_lip.cli"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", *launcher]
    return [sys.executable, *launcher, *arguments]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments: str, processes: int = 1) -> str:
    done = subprocess.run(
        command(*arguments, processes=processes), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def last_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints_in(folder / "checkpoints")[-1]).tensors


def kill_at(folder: Path, step: int, *arguments: str) -> None:
    """Starts a run and ends it with SIGKILL once its log has reached a step."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            log = folder / "metrics.csv"
            if log.exists() and any(int(row["step"]) >= step for row in read_log(log)):
                break
            time.sleep(0.01)
        assert process.poll() is None, f"it ended before it could be killed: {process.stderr.read()[-2000:]}"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed(tmp_path):
    """The end of a run that was killed is equal, bit for bit, to the end of one that was not."""
    options = [*TRAIN, "--epochs", "6", "--bound", "local-product", "--log-every", "1", "--checkpoint-every", "3"]
    step = random.Random(os.getpid()).randint(5, 70)
    killed = tmp_path / "killed"
    kill_at(killed, step, *options, "--out", str(killed))
    reached = load_checkpoint(checkpoints_in(killed / "checkpoints")[-1]).state["step"]
    assert "resumed from" in run("train", "--resume", "--out", str(killed)), f"killed at step {step}"
    run(*options, "--out", str(tmp_path / "whole"))
    whole, resumed = last_tensors(tmp_path / "whole"), last_tensors(killed)
    assert reached < 108 and whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), f"{name}, killed at step {step}, resumed from {reached}"
    steps = [row["step"] for row in read_log(killed / "metrics.csv") if row["split"] == "train"]
    assert steps == [str(n) for n in range(1, 109)]


@pytest.mark.slow
def test_two_processes_train_and_certify_what_one_does(tmp_path):
    """Same global batches, gradients averaged over gloo: the weights of one process, up to rounding."""
    options = [*TRAIN, "--epochs", "1", "--bound", "global-product"]
    run(*options, "--out", str(tmp_path / "one"))
    run(*options, "--out", str(tmp_path / "two"), processes=2)
    found = [checkpoints_in(tmp_path / name / "checkpoints")[-1] for name in ("one", "two")]
    assert [load_checkpoint(path).state["processes"] for path in found] == [1, 2]
    one, two = (load_checkpoint(path).tensors for path in found)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4, msg=name)
    rows = [read_log(tmp_path / name / "metrics.csv")[-1] for name in ("one", "two")]
    assert float(rows[0]["clean"]) == pytest.approx(float(rows[1]["clean"]), abs=0.02)

    common = [
        str(tmp_path / "one"),
        "--bound",
        "global-product",
        "--limit",
        "50",
        "--eps",
        "0.05,0.2",
        "--pgd-steps",
        "5",
    ]
    run("certify", *common, "--out", str(tmp_path / "rows1"))
    text = run("certify", *common, "--out", str(tmp_path / "rows2"), "--batch-size", "7", processes=2)
    assert text.count("deterministic") == 2  # a line for each radius
    first, second = read_rows(tmp_path / "rows1"), read_rows(tmp_path / "rows2")
    assert sorted(p.name for p in (tmp_path / "rows2").glob("rows-*")) == ["rows-0-of-2.csv", "rows-1-of-2.csv"]
    assert len(first) == len(second) == 50
    for a, b in zip(first, second, strict=True):
        assert (a.index, a.label, a.prediction) == (b.index, b.label, b.prediction)
        assert a.radius == pytest.approx(b.radius, rel=1e-3)  # the norms begin at random vectors
