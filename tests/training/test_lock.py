"""A folder belongs to one process at a time; a lock that a dead process left counts for nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lirpa_lip.errors import LockedError
from lirpa_lip.training.lock import NAME, FolderLock

HOLD = """
import sys, time
from pathlib import Path
from lirpa_lip.training.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()


def test_the_other_process_is_named_and_its_death_frees_the_folder(tmp_path, holder):
    with pytest.raises(LockedError, match=f"process {holder.pid} on .*--out"), FolderLock(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == holder.pid  # it could not tidy up
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert (tmp_path / NAME).read_text() == ""


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with FolderLock(tmp_path), FolderLock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    with FolderLock(tmp_path, wanted=False):
        assert (tmp_path / NAME).read_text() == ""


def test_a_lock_of_another_host_must_be_removed_by_hand(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(LockedError, match=r"process 1 on elsewhere.*delete .*\.lock"), FolderLock(tmp_path):
        pass
    (tmp_path / NAME).write_text('{"pid": 1, "ho')  # half written by a process that was killed
    with FolderLock(tmp_path):
        pass


def test_two_trainings_do_not_share_a_folder(tmp_path, holder):
    from click.testing import CliRunner

    from lirpa_lip.cli import main

    begun = time.monotonic()
    call = ["train", "--dataset", "digits", "--arch", "mlp-small", "--loss", "plain", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 1 and f"process {holder.pid}" in result.output and time.monotonic() - begun < 60
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAME]
