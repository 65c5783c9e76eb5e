"""The network of a run alone: certified like the run, without what training needs; nothing is overwritten."""

from __future__ import annotations

import pytest
import torch
from commands import invoke

from lirpa_lip.errors import CheckpointError, UnknownMethodError
from lirpa_lip.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from lirpa_lip.training.export import export_weights
from lirpa_lip.training.run_state import model_from


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    options = "--dataset digits --arch mlp-small --loss plain --epochs 1 --limit 100 --batch-size 50 --ema 0.5"
    assert invoke("train", *options.split(), "--out", folder).exit_code == 0
    return folder


def table(folder):
    (summary,) = folder.glob("certificates/*/certificates.csv")
    rows = [line.split(",") for line in summary.read_text().splitlines()[1:]]
    return [r[:3] for r in rows], [float(v) for r in rows for v in r[3:5]]


def test_the_network_is_the_runs_and_nothing_else_is_there(run, tmp_path):
    answer = invoke("export", run, tmp_path / "net")
    assert answer.exit_code == 0, answer.output
    assert f"lirpa-lip certify {tmp_path / 'net'}" in answer.output
    before, after = (load_checkpoint(find_checkpoint(f)) for f in (run, tmp_path / "net"))
    assert any(name.startswith("average.") for name in before.tensors)
    assert set(after.tensors) == {f"model.{name}" for name in before.weights}
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model_from(before)(x), model_from(after)(x))
    assert str(run) not in (find_checkpoint(tmp_path / "net") / "state.json").read_text()
    for folder in (run, tmp_path / "net"):
        asked = "--eps 0.1 --bound global-product --certificate deterministic --limit 6 --pgd-steps 0"
        assert invoke("certify", folder, *asked.split()).exit_code == 0
    (classes, numbers), (same, others) = table(run), table(tmp_path / "net")
    assert classes == same and numbers == pytest.approx(others, rel=1e-8)  # norms are found from other starts


def test_training_starts_from_it_but_does_not_go_on(run, tmp_path):
    export_weights(run, tmp_path / "net")
    options = "--dataset digits --arch mlp-small --loss plain --epochs 1 --limit 100 --batch-size 50"
    started = invoke("train", *options.split(), "--start-from", tmp_path / "net", "--out", tmp_path / "next")
    assert started.exit_code == 0, started.output
    resumed = invoke("train", "--resume", find_checkpoint(tmp_path / "net"), "--out", tmp_path / "other")
    assert resumed.exit_code == 1 and "checkpoint" in resumed.output and "Traceback" not in resumed.output


def test_rounded_weights_are_another_network_that_certifies_too(run, tmp_path):
    export_weights(run, tmp_path / "half", "bfloat16")
    found = load_checkpoint(find_checkpoint(tmp_path / "half"))
    assert {t.dtype for t in found.tensors.values() if t.is_floating_point()} == {torch.bfloat16}
    model = model_from(found)
    assert all(p.dtype == torch.float32 and torch.equal(p, p.bfloat16().float()) for p in model.parameters())
    asked = "--eps 0.1 --bound global-product --limit 3 --pgd-steps 0"
    assert invoke("certify", tmp_path / "half", *asked.split()).exit_code == 0


def test_what_cannot_be_exported_is_said(run, tmp_path):
    with pytest.raises(UnknownMethodError, match="float32"):
        export_weights(run, tmp_path / "a", "float8")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export_weights(tmp_path, tmp_path / "b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        export_weights(run, tmp_path / "mine")
    source = load_checkpoint(find_checkpoint(run))
    large = {name: torch.full_like(t, 3.4e38) for name, t in source.tensors.items()}
    save_checkpoint(tmp_path / "large" / "checkpoints", Checkpoint(large, source.state), 1, kind="best")
    with pytest.raises(CheckpointError, match="bfloat16"):
        export_weights(tmp_path / "large", tmp_path / "c", "bfloat16")
    assert not (tmp_path / "c").exists()
