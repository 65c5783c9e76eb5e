"""Checkpoints: complete or not there, and one clear error for each way one can be spoilt."""

from __future__ import annotations

import errno
import json
import os
import resource

import pytest
import torch

from lirpa_lip.errors import CheckpointError
from lirpa_lip.training import checkpoint as module
from lirpa_lip.training.checkpoint import Checkpoint, checkpoints_in, find_checkpoint, load_checkpoint, save_checkpoint


def sample(step: int = 0) -> Checkpoint:
    tensors = {
        "model.weight": torch.full((50, 50), float(step)),
        "bound.vector": torch.arange(3),
        "other": torch.ones(()),
    }
    return Checkpoint(tensors, {"step": step, "best": 0.25, "config": {"eps": "36/255"}})


def test_round_trip(tmp_path):
    path = save_checkpoint(tmp_path, sample(7), 7)
    loaded = load_checkpoint(path)
    assert loaded.state == sample(7).state
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in sample(7).tensors.items())
    assert set(loaded.group("model")) == {"weight"}
    assert path.name == "step-00000007" and os.listdir(tmp_path) == [path.name]


def test_keeps_the_newest(tmp_path):
    for step in (1, 2, 10, 3):
        save_checkpoint(tmp_path, sample(step), step, keep=2)
    assert [p.name for p in checkpoints_in(tmp_path)] == ["step-00000003", "step-00000010"]


def test_writing_the_same_step_again(tmp_path):
    save_checkpoint(tmp_path, sample(1), 5)
    path = save_checkpoint(tmp_path, sample(2), 5)
    assert load_checkpoint(path).state["step"] == 2
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("damage", ["truncate", "flip", "state", "json", "remove"])
def test_damage_is_noticed_and_points_to_an_earlier_one(tmp_path, damage):
    save_checkpoint(tmp_path, sample(1), 1)
    path = save_checkpoint(tmp_path, sample(2), 2)
    tensors, state = path / "tensors.safetensors", path / "state.json"
    content = tensors.read_bytes()
    if damage == "truncate":
        tensors.write_bytes(content[:-100])
    elif damage == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "state":  # valid JSON, another value
        record = json.loads(state.read_text())
        record["state"]["best"] = 0.5
        state.write_text(json.dumps(record))
    elif damage == "json":
        state.write_text(state.read_text()[:40])
    else:
        tensors.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint" if damage == "remove" else "step-00000001"):
        load_checkpoint(path)
    assert load_checkpoint(tmp_path / "step-00000001").state["step"] == 1


def test_other_format(tmp_path):
    path = save_checkpoint(tmp_path, sample(), 0)
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)


def test_full_disk_leaves_the_last_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, sample(1), 1)

    def full(path, content):
        path.write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*intact"):
        save_checkpoint(tmp_path, sample(2), 2)
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert load_checkpoint(tmp_path / "step-00000001").state["step"] == 1


def test_file_size_limit_of_the_system(tmp_path):
    """The same with the operating system refusing the write."""
    save_checkpoint(tmp_path, sample(1), 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save_checkpoint(tmp_path, sample(2), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("stage", ["tensors", "state", "rename"])
def test_dying_while_writing_leaves_the_last_one(tmp_path, monkeypatch, stage):
    """A process that dies at any point of a save: what was there is found, and the next save succeeds."""
    save_checkpoint(tmp_path, sample(1), 1)

    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    write = module._write
    if stage == "rename":
        monkeypatch.setattr(module, "_swap", die)
    else:
        monkeypatch.setattr(module, "_write", lambda path, c: die() if path.stem.startswith(stage) else write(path, c))
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, sample(2), 2)
    assert [p.name for p in checkpoints_in(tmp_path)] == ["step-00000001"]
    monkeypatch.undo()
    assert load_checkpoint(save_checkpoint(tmp_path, sample(2), 2)).state["step"] == 2


def test_finding(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_checkpoint(tmp_path)
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, sample(3), 3)
    assert find_checkpoint(tmp_path).name == "step-00000003"
    save_checkpoint(folder, sample(2), 2, kind="best", keep=1)
    save_checkpoint(folder, sample(4), 4, kind="best", keep=1)
    assert find_checkpoint(tmp_path).name == "best-00000004"
    assert find_checkpoint(folder / "step-00000003").name == "step-00000003"
