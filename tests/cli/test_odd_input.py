"""What a newcomer may type or hand over by mistake: one line that says what is wrong, nothing taken in silence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import invoke
from networks.files import BOX, mlp
from PIL import Image
from torch import nn

from lirpa_lip.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint

SHORT = "--dataset digits --arch mlp-small --loss plain --epochs 1 --limit 100 --batch-size 50".split()


def refused(result, message):
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.exception
    assert message in result.output, result.output


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "r"
    assert invoke("train", *SHORT, "--out", folder).exit_code == 0
    return folder


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def flat_sum():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 10)

        def forward(self, x):
            return self.inner(x.flatten(1)).sum(1)

    return Sum()


def half():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half()


def failing():
    raise KeyError("mine")


def spoilt():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(model[1].bias, float("nan"))
    return model


def empty():
    class Empty(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]

    return Empty()


NO_NETWORK = 3
HERE = __name__


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--eps 1e-999999999", "is no number"),  # Python would make 10 ** 999999999 of it
        ("--eps 1e999999999", "is no number"),
        ("--eps 1_0/255", "is no number"),
        ("--eps \u0663/255", "is no number"),
        ("--epochs 1_0", "is not a whole number"),
        ("--lr 1_0", "is not a number"),
        ("--epochs 99999999999999999999", "less than 19 digits"),
        ("--validation 1.5", "neither a fraction nor a number"),
        ("--arch :x", "cannot import"),
        ("--arch .a:c", "cannot import"),
        (f"--arch {HERE}:flat_sum", "gives a tensor of shape (1,)"),
        (f"--arch {HERE}:narrow", "gives a tensor of shape (1, 3)"),
        (f"--arch {HERE}:half", "takes no float32 images"),
        (f"--arch {HERE}:failing", "failed: KeyError: 'mine' in"),
        (f"--arch {HERE}:NO_NETWORK", "is int, and no function"),
        (f"--arch {HERE}:empty", "no parameters to train"),
    ],
)
def test_settings_that_cannot_be(flags, message, tmp_path):
    refused(invoke("train", *SHORT, "--out", tmp_path / "r", *flags.split(" ")), message)


def test_modules_that_fail_on_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_python_text.py").write_text("def f(:")
    (tmp_path / "failing_module.py").write_text("1/0")
    refused(invoke("train", *SHORT, "--arch", "no_python_text:f", "--out", "r"), "SyntaxError")
    refused(invoke("train", *SHORT, "--arch", "failing_module:f", "--out", "r"), "failing_module.py, line 1")


def test_an_empty_out_is_no_folder(run_folder, tmp_path, monkeypatch):
    """As of a variable of the shell that is not set; it was the folder one stands in."""
    monkeypatch.chdir(tmp_path)
    certify = ["certify", run_folder, "--limit", "1", "--bound", "ibp", "--pgd-steps", "0"]
    for call in (["train", *SHORT], certify, ["report", run_folder], ["lipschitz", run_folder],
                 ["compare", run_folder, "--eps", "0.1"], ["monotonicity"],
                 ["verify", run_folder, "--data", "digits", "--eps", "0.1"]):  # fmt: skip
        refused(invoke(*call, "--out", ""), "empty")
    assert not list(tmp_path.iterdir())


def test_settings_that_nothing_reads_are_named(run_folder, tmp_path):
    flags = ["--image-size", "16", "--threshold", "3", "--activation", "relu", "--data-dir", tmp_path]
    result = invoke("train", *SHORT, *flags, "--out", tmp_path / "r")
    assert result.exit_code == 0 and result.output.count("warning: ") == 3, result.output
    for words in ("image_size is of", "is not read: scikit-learn ships", "threshold is not read"):
        assert words in result.output
    short = ["--limit", "1", "--bound", "ibp", "--pgd-steps", "0", "--out", tmp_path / "c"]
    result = invoke("certify", run_folder, *short, "--data-dir", tmp_path)
    assert result.exit_code == 0 and "is not read: scikit-learn ships digits" in result.output


def spoilt_run(run_folder, folder, kind="best", tensors=None, state=None):
    """A run whose only checkpoint has other tensors, or says something else; its digest is right."""
    loaded = load_checkpoint(find_checkpoint(run_folder))
    changed = Checkpoint({**loaded.tensors, **(tensors or {})}, {**loaded.state, **(state or {})})
    save_checkpoint(folder / "checkpoints", changed, 1, kind)
    return folder


WEIGHT = "model.1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: torch.full_like(w, float("nan")), "contains NaN or infinite"),
        (lambda w: torch.full_like(w, float("inf")), "contains NaN or infinite"),
        (lambda w: w.to(torch.int8), "has type torch.int8"),
        (lambda w: w[:5], "has shape (5, 64)"),
    ],
)
def test_weights_that_cannot_be(run_folder, tmp_path, change, message):
    weight = load_checkpoint(find_checkpoint(run_folder)).tensors[WEIGHT]
    folder = spoilt_run(run_folder, tmp_path / "r", tensors={WEIGHT: change(weight)})
    for call in (["certify", folder], ["verify", folder, "--data", "digits", "--eps", "0.1"],
                 ["train", *SHORT, "--start-from", folder, "--out", tmp_path / "new"]):  # fmt: skip
        result = invoke(*call)
        refused(result, message)
        assert len(result.output.strip().splitlines()) == 1
    folder = spoilt_run(run_folder, tmp_path / "s", "step", tensors={WEIGHT: change(weight)})
    refused(invoke("train", "--resume", folder, "--epochs", "3"), message)


@pytest.mark.parametrize(
    "data", [{"shape": "abc"}, {"shape": [1, 8]}, {"shape": [1, 8, -8]}, {"classes": "ten"}, {"classes": True},
             {"class_names": 5}, {"class_names": [0, 1]}, {"mean": "abc"}, {"std": [None]}]
)  # fmt: skip
def test_what_a_checkpoint_says_of_its_data(run_folder, tmp_path, data):
    said = {**load_checkpoint(find_checkpoint(run_folder)).state["data"], **data}
    folder = spoilt_run(run_folder, tmp_path / "r", state={"data": said})
    for call in (["certify", folder], ["verify", folder, "--data", "digits", "--eps", "0.1"]):
        refused(invoke(*call), "which cannot be")


@pytest.mark.parametrize("step", [-5, 1e300, "x", [1], None])
def test_a_step_that_cannot_be(run_folder, tmp_path, step):
    folder = spoilt_run(run_folder, tmp_path / "r", "step", state={"step": step})
    refused(invoke("train", "--resume", folder, "--epochs", "3"), "at which step")


def test_a_run_without_its_settings_file_goes_on_with_the_checkpoints(run_folder, tmp_path):
    shutil.copytree(run_folder / "checkpoints", tmp_path / "r" / "checkpoints")
    result = invoke("train", "--resume", tmp_path / "r", "--epochs", "2")
    assert result.exit_code == 0 and "resumed from" in result.output, result.output
    result = invoke("train", "--resume", tmp_path / "r" / "checkpoints", "--epochs", "3")
    assert result.exit_code == 0 and "resumed from" in result.output, result.output


def test_checkpoints_damaged_behind_their_digest(run_folder, tmp_path):
    from lirpa_lip.training.checkpoint import _digest

    state = load_checkpoint(find_checkpoint(run_folder)).state
    folder = spoilt_run(run_folder, tmp_path / "r")
    (path,) = (folder / "checkpoints").iterdir()
    whole = (path / "tensors.safetensors").read_bytes()
    for content, said in ((b"garbage", state), (whole, [1])):
        (path / "tensors.safetensors").write_bytes(content)
        record = {"format": 2, "sha256": _digest(content, said), "state": said}
        (path / "state.json").write_text(json.dumps(record))
        refused(invoke("certify", folder), "is damaged")


def test_folders_beside_the_checkpoints(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "r")
    other = tmp_path / "r" / "checkpoints" / "best-of-all"
    shutil.copytree(find_checkpoint(run_folder), other)
    assert find_checkpoint(tmp_path / "r").name == find_checkpoint(run_folder).name
    assert find_checkpoint(tmp_path / "r" / "checkpoints").name == find_checkpoint(run_folder).name


def test_an_arithmetic_there_is_not_leaves_no_folder(run_folder, tmp_path):
    call = ["certify", run_folder, "--limit", "1", "--bound", "ibp", "--pgd-steps", "0", "--out", tmp_path / "c"]
    refused(invoke(*call, "--inference", "float16"), "float32")
    assert not (tmp_path / "c").exists()
    refused(invoke(*call, "--batch-size", "99999999999999999999"), "digits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([f"{HERE}:flat_sum"], "gives a tensor of shape (1,)"),
        ([f"{HERE}:narrow"], "gives a tensor of shape (1, 3)"),
        ([f"{HERE}:spoilt"], "contains NaN"),
        ([f"{HERE}:empty", "--methods", " , "], "no name is given"),
        ([f"{HERE}:empty", "--eps", "9"], "largest distance"),
    ],
)
def test_compare_refuses(options, message):
    refused(invoke("compare", "--dataset", "digits", "--eps", "0.1", "--limit", "3", *options), message)


def test_compare_warns_of_a_radius_no_network_withstands():
    result = invoke(
        "compare", f"{HERE}:empty", "--dataset", "digits", "--eps", "3", "--limit", "20", "--methods", "ibp,"
    )
    assert result.exit_code == 0 and "of another class within" in result.stderr and result.stdout.count("\n") == 2


def test_names_given_twice_count_once(run_folder, tmp_path):
    result = invoke("lipschitz", run_folder, "--methods", "naive, naive,", "--limit", "1")
    assert result.exit_code == 0 and result.stdout.count("0,naive") == 1
    short = ["--epochs", "1", "--samples", "2", "--time-limit", "0", "--out", tmp_path]
    result = invoke("monotonicity", "--features", "bmi,2,bmi", *short)
    assert result.exit_code == 0
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("bmi,")]
    assert sum(float(share) for share in row.split(",")[1:]) == 1
    refused(invoke("monotonicity", "--features", "\u00b2", *short), "is no column")
    refused(invoke("lipschitz", run_folder, "--methods", "local-lip"), "--norm 2")
    refused(invoke("lipschitz", run_folder, "--memory", "1e300"), "must lie between")


def test_memory_that_is_not_there(tmp_path):
    refused(invoke("monotonicity", "--hidden", "99999999999999", "--out", tmp_path), "not enough memory")


@pytest.fixture(scope="module")
def certified(run_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified") / "c"
    call = ["certify", run_folder, "--limit", "3", "--bound", "ibp", "--pgd-steps", "0", "--eps", "0.1"]
    assert invoke(*call, "--out", folder).exit_code == 0
    return folder


@pytest.mark.parametrize(
    "change",
    [{"samples": "x"}, {"samples": -1}, {"samples": 9999}, {"clean": float("nan")}, {"clean": 17}, {"table": []},
     {"certificate": "certain"}, {"delta_per_sample": 2}, {"settings": {"bound": 5}},
     {"table": [{"eps": "nan", "pgd": None, "certified": 0.5}]},
     {"table": [{"eps": "0.1", "pgd": None, "certified": 2.0}]}],
)  # fmt: skip
def test_summaries_that_cannot_be(certified, tmp_path, change):
    shutil.copytree(certified, tmp_path / "c")
    path = tmp_path / "c" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(invoke("report", tmp_path / "c", "--out", tmp_path / "r"), "certify once more")
    assert not (tmp_path / "r").exists()


def test_names_of_a_report(certified, tmp_path):
    refused(invoke("report", certified, "--names", " ", "--out", tmp_path), "empty")
    assert invoke("report", certified, "--names", "a|b", "--out", tmp_path).exit_code == 0
    assert "| a\\|b |" in (tmp_path / "report.md").read_text()


X = np.random.RandomState(0).rand(3, 1, 8, 8).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "y": np.array(["a", "b", "c"])}, "give numbers"),
        ({"x": X, "y": np.array([0, np.nan, 1])}, "one whole number"),
        ({"x": X, "y": [0, 1, 99]}, "label 99 of input 2"),
        ({"x": X, "y": [0, -1, 1]}, "label -1 of input 1"),
        ({"x": X, "y": np.array([0, 1, 2**63], dtype=np.uint64)}, "is no label"),
        ({"x": np.float32(1)}, "holds no inputs"),
        ({"x": X, "low": np.array(["a"]), "high": np.array(["b"])}, "give numbers"),
        ({"x": X, "low": X, "high": np.where(X == X[1], np.nan, X)}, "sample 1 has a range that is not finite"),
        ({"x": X, "low": X + 1, "high": X}, "low exceeds high"),
    ],
)
def test_arrays_that_cannot_be_are_refused_before_any_is_worked_on(run_folder, tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    eps = [] if "low" in arrays else ["--eps", "0.1"]
    refused(invoke("verify", run_folder, "--data", tmp_path / "x.npz", *eps, "--out", tmp_path / "v"), message)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("assertion", "message"),
    [("(>= Y_0 1_0)", "'1_0'"), ("(>= Y_0 1e400000)", "1e400000"), ("(>= Y_0 1e999)", "digits exceeds")],
)
def test_numbers_of_a_property(tmp_path, assertion, message):
    (tmp_path / "p.vnnlib").write_text(BOX + f"(assert {assertion})")
    refused(invoke("verify", mlp(tmp_path / "m.onnx"), "--property", tmp_path / "p.vnnlib"), message)


def test_a_property_of_more_numbers_than_memory_holds(tmp_path):
    pytest.importorskip("vnnlib")
    text = "(vnnlib-version <2.0>)\n(declare-network N (declare-input X Real [1,9999999999]) "
    (tmp_path / "p.vnnlib").write_text(text + "(declare-output Y Real [1,2]))\n(assert (>= X[0,0] 0))")
    refused(invoke("verify", mlp(tmp_path / "m.onnx"), "--property", tmp_path / "p.vnnlib"), "declares 9999999999")
    (tmp_path / "p.vnnlib.gz").write_bytes(b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 20)
    refused(invoke("verify", mlp(tmp_path / "m.onnx"), "--property", tmp_path / "p.vnnlib.gz"), "cannot be read")


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--eps 0.1", "--eps is not read"), ("--limit 3", "--limit is not read"), ("--classes 99", "leave it out"),
     ("--arch a:b", "would not be read"), ("--out v", "--out is not read")],
)  # fmt: skip
def test_flags_that_a_property_does_not_read(tmp_path, flags, message):
    (tmp_path / "p.vnnlib").write_text(BOX + "(assert (<= Y_0 100))")
    call = ["verify", mlp(tmp_path / "m.onnx"), "--property", tmp_path / "p.vnnlib", *flags.split()]
    refused(invoke(*call), message)


def test_other_classes_of_a_folder_are_an_error_for_verify_too(tmp_path):
    """A folder with a class less has its labels shifted; the run knows the names."""
    for split, names in (("train", "abc"), ("test", "abc"), ("less", "ac"), ("more", "abcd")):
        for level, name in enumerate(names):
            for index in range(6):
                folder = tmp_path / "data" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 60 * level + index).save(folder / f"{index}.png")
    flags = "--dataset imagefolder --image-size 8 --loss plain --arch mlp-small --epochs 1 --batch-size 6".split()
    assert invoke("train", *flags, "--data-dir", tmp_path / "data", "--out", tmp_path / "r").exit_code == 0
    call = ["verify", tmp_path / "r", "--eps", "0.01", "--no-branch", "--pgd-steps", "1", "--limit", "1"]
    refused(invoke(*call, "--data", tmp_path / "data" / "less", "--out", tmp_path / "v"), "missing: b")
    refused(invoke(*call, "--data", tmp_path / "data" / "more", "--out", tmp_path / "v"), "unknown to it: d")
    assert invoke(*call, "--data", tmp_path / "data" / "test", "--out", tmp_path / "v").exit_code == 0


def test_weights_of_a_file_that_cannot_be(tmp_path):
    model = narrow()
    spoilt_weight = {**model.state_dict(), "1.weight": torch.full((3, 64), float("inf"))}
    safetensors.torch.save_file(spoilt_weight, tmp_path / "inf.safetensors")
    safetensors.torch.save_file(
        {k: v.to(torch.int8) for k, v in model.state_dict().items()}, tmp_path / "int.safetensors"
    )
    np.save(tmp_path / "x.npy", X)
    for name, message in (("inf", "contains NaN or infinite"), ("int", "torch.int8")):
        call = ["verify", tmp_path / f"{name}.safetensors", "--arch", f"{HERE}:narrow", "--input-shape", "1,8,8"]
        refused(invoke(*call, "--data", tmp_path / "x.npy", "--eps", "0.1", "--out", tmp_path / "v"), message)
