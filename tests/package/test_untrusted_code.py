"""Nothing that a file says is run: no pickles, and no module that only a checkpoint or a configuration names."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lirpa_lip.cli import main
from lirpa_lip.errors import UntrustedCodeError
from lirpa_lip.training.checkpoint import checkpoints_in, load_checkpoint, save_checkpoint
from lirpa_lip.training.run_state import model_from

PACKAGE = Path(__file__).resolve().parents[2] / "lirpa_lip"
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

RUN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.full_load",
       "yaml.unsafe_load"}  # fmt: skip


def dangers(source: str) -> list[str]:
    """Calls and imports in a file that can run what data say."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in PICKLES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        words = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in RUN or called.startswith("subprocess."):
            found.append(called)
        if called == "torch.load" and words.get("weights_only") != "True":
            found.append(called)
        if called in ("np.load", "numpy.load") and words.get("allow_pickle", "False") != "False":
            found.append(called)
        if words.get("shell") == "True":
            found.append(f"{called}(shell=True)")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_of_the_package_runs_data(path):
    assert not dangers(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import load", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(t)",
     "eval(text)", "exec(text)", "np.load(f, allow_pickle=True)", "run(t, shell=True)", "import joblib"],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line):
    assert dangers(line)
    assert not dangers("torch.load(f, weights_only=True); yaml.safe_load(t); model.eval()")


@pytest.fixture(scope="module")
def tainted(tmp_path_factory) -> Path:
    """A run whose checkpoint names a module that leaves a file behind when it is imported."""
    folder = tmp_path_factory.mktemp("tainted")
    options = "--dataset digits --arch mlp-small --loss plain --epochs 1 --limit 60 --batch-size 20 --out"
    result = CliRunner().invoke(main, ["train", *options.split(), str(folder / "run")])
    assert result.exit_code == 0, result.output
    kept = folder / "run" / "checkpoints"
    path = checkpoints_in(kept, "best")[-1]
    loaded = load_checkpoint(path)
    loaded.state["config"]["arch"] = "marks_its_import:network"
    save_checkpoint(kept, loaded, step=int(path.name.split("-")[1]), kind="best")
    (folder / "marks_its_import.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('mark').touch()\n"
        "from lirpa_lip.training.models import build_model\n"
        "def network(input_shape, classes):\n    return build_model('mlp-small', input_shape, classes)\n"
    )
    settings = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({**settings, "arch": "marks_its_import:network"}))
    return folder


@pytest.fixture
def mark(tainted, monkeypatch) -> Path:
    monkeypatch.chdir(tainted)
    monkeypatch.delitem(sys.modules, "marks_its_import", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tainted / "mark").unlink(missing_ok=True)
    return tainted / "mark"


COMMANDS = {
    "certify": ["--eps", "0.01", "--limit", "2", "--pgd-steps", "0", "--bound", "global", "--radius-steps", "0"],
    "compare": ["--eps", "0.01", "--limit", "2", "--methods", "ibp"],
    "lipschitz": ["--limit", "1", "--methods", "naive"],
    "verify": ["--data", "digits", "--eps", "0.01", "--limit", "2", "--no-branch"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_module_a_checkpoint_names_is_not_imported(command, tainted, mark, tmp_path):
    call = [command, str(tainted / "run"), *COMMANDS[command], "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(main, call)
    assert refused.exit_code != 0 and "--trust-arch" in refused.output and "Traceback" not in refused.output
    assert not mark.exists()
    for allowed in (["--trust-arch"], ["--arch", "marks_its_import:network"]):
        sys.modules.pop("marks_its_import", None)
        mark.unlink(missing_ok=True)
        call[-1] = str(tmp_path / allowed[0])
        result = CliRunner().invoke(main, [*call, *allowed])
        assert result.exit_code == 0, result.output
        assert mark.exists()  # found in the current folder


@pytest.mark.parametrize("flags", [["--resume", "--out", "run"], ["--config", "run/config.yaml", "--out", "other"]])
def test_nor_one_that_a_configuration_names(flags, mark):
    result = CliRunner().invoke(main, ["train", *flags])
    assert result.exit_code != 0 and "--trust-arch" in result.output and not mark.exists()


def test_in_python_too(tainted, mark):
    loaded = load_checkpoint(checkpoints_in(tainted / "run" / "checkpoints", "best")[-1])
    with pytest.raises(UntrustedCodeError, match="marks_its_import"):
        model_from(loaded)
    assert not mark.exists()
    assert json.dumps(loaded.state)
    model_from(loaded, trust_arch=True)
