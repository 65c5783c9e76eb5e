"""SIGKILL at random moments, anywhere from the first import on: the end is that of an undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import kill_runs


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    seed = os.getpid()
    chance, begun = random.Random(seed), time.monotonic()
    kill_runs.finish([*kill_runs.TRAIN, "--out", str(tmp_path / "whole")])
    seconds = time.monotonic() - begun
    kill_runs.disturbed_training(tmp_path / "killed", kill_runs.Clock(chance, seconds), 1)
    whole, killed = (kill_runs.tensors_of(tmp_path / name) for name in ("whole", "killed"))
    assert kill_runs.same_tensors(whole, killed), seed
    begun = time.monotonic()
    kill_runs.finish(["certify", str(tmp_path / "whole"), *kill_runs.CERTIFY, "--out", str(tmp_path / "rows")])
    seconds = time.monotonic() - begun
    clock = kill_runs.Clock(chance, seconds)
    kill_runs.disturbed_certification(tmp_path / "whole", tmp_path / "rows", tmp_path / "cut", clock, 1)
    assert kill_runs.rows_of(tmp_path / "rows") == kill_runs.rows_of(tmp_path / "cut"), seed
    two = ["certify", str(tmp_path / "whole"), *kill_runs.CERTIFY, "--out", str(tmp_path / "two")]
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "rows" / "certify.json", tmp_path / "two")
    kill_runs.finish(two, processes=2)
    assert kill_runs.rows_of(tmp_path / "rows") == kill_runs.rows_of(tmp_path / "two")
    assert len(kill_runs.rows_of(tmp_path / "rows")) == 60
