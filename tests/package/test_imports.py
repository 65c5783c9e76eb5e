"""What importing costs and needs: the command line's help nothing, the library only its core dependencies."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lirpa_lip
from lirpa_lip.errors import INSTALL_AUTO_LIRPA
from lirpa_lip_cli import COMMANDS, TRAIN_MODULES

ROOT = Path(lirpa_lip.__file__).resolve().parents[1]
HEAVY = ("scipy", "sklearn", "matplotlib", "torchvision", "foolbox", "accelerate", "yaml", "tensorboard", "onnx",
         "pandas", "click", "rich", "PIL")  # fmt: skip
# auto_LiRPA and our additions to it, without the rest of the package
BASE = f"""
import sys, types
import torch
package = types.ModuleType("lirpa_lip")
package.__path__ = [{str(ROOT / "lirpa_lip")!r}]
sys.modules["lirpa_lip"] = package
import lirpa_lip.autolirpa.compat
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_importing_the_library_leaves_the_rest_alone():
    done = run("-c", f"import sys, lirpa_lip; print([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_importing_the_library_brings_no_other_package():
    """Beside torch and auto_LiRPA only files of its own (`benchmarks/imports.py` says what these cost)."""
    code = BASE + "\nbefore = set(sys.modules); del sys.modules['lirpa_lip']; import lirpa_lip"
    done = run("-c", code + "\nprint(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"lirpa_lip", "torch", *sys.stdlib_module_names}


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_answer_at_once(flag):
    code = f"import sys, lirpa_lip_cli; lirpa_lip_cli.main(['{flag}'], standalone_mode=False); print(*sys.modules)"
    modules = run("-c", code).stdout.split()
    assert "click" in modules and not {"torch", "auto_LiRPA", "numpy", "lirpa_lip"} & set(modules)


WITHOUT = """
import sys
sys.modules["{missing}"] = None
sys.argv = ["lirpa-lip", *{arguments}]
import lirpa_lip_cli
lirpa_lip_cli.main(prog_name="lirpa-lip")
"""


def without(missing: str, *arguments: str) -> subprocess.CompletedProcess:
    return run("-c", WITHOUT.format(missing=missing, arguments=list(arguments)))


def test_without_auto_lirpa_help_and_version_work():
    assert all(name in without("auto_LiRPA", "--help").stdout for name in COMMANDS)
    assert lirpa_lip.__version__ in without("auto_LiRPA", "--version").stdout


@pytest.mark.parametrize("command", [["train"], ["certify", "x"], ["report", "--help"]], ids=" ".join)
def test_without_auto_lirpa_commands_say_in_one_line_how_to_get_it(command):
    done = without("auto_LiRPA", *command)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert INSTALL_AUTO_LIRPA in line


@pytest.mark.parametrize("module", ["lirpa_lip", "lirpa_lip.cli"])
def test_without_auto_lirpa_as_a_module(module, tmp_path):
    """``python -m lirpa_lip`` imports the package before anything of the command line's own."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['auto_LiRPA'] = None\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    assert "certify" in call("--help").stdout and lirpa_lip.__version__ in call("--version").stdout
    done = call("train", "--epochs", "1")
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and INSTALL_AUTO_LIRPA in done.stderr


def test_without_the_extra_commands_name_it():
    done = without("yaml", "train")
    assert done.returncode != 0 and "lirpa_lip[train]" in done.stderr and "Traceback" not in done.stderr


CORE = """
import sys
for name in {modules}:
    sys.modules[name] = None
import torch
from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
import lirpa_lip.losses, lirpa_lip.local.rows, lirpa_lip.comparison
net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
x = torch.rand(2, 4)
ball = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.1)),)
bounded = BoundedModule(net, x)
bounded.compute_bounds(x=ball, method="local-lip")
bounded.local_lipschitz(ball)
box = (BoundedTensor(x, PerturbationLpNorm(eps=0.1)),)
bounded.local_lipschitz(box, method="clarke-jacobian", norm=1, time_limit=0.2)
print("bounded")
"""


def test_bounds_need_the_core_dependencies_only():
    done = run("-c", CORE.format(modules=sorted(TRAIN_MODULES)))
    assert done.stdout.strip() == "bounded", done.stderr


def third_party(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"lirpa_lip", "lirpa_lip_cli", "auto_LiRPA", "triton"}


def test_every_import_is_a_declared_dependency():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    core = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    train = re.search(r"^train = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    onnx = re.search(r"^onnx = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    plots = re.search(r"^plots = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)[1]
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}

    def declared(module: str, where: str) -> bool:
        return re.search(rf'"{names.get(module, module)}[">=]', where) is not None

    for path in sorted((ROOT / "lirpa_lip").rglob("*.py")):
        inside = path.relative_to(ROOT / "lirpa_lip").parts[0]
        extra = {"training": train, "cli": train, "verify": onnx, "plots": plots}.get(inside, "")
        allowed = core + extra
        missing = [module for module in third_party(path) if not declared(module, allowed)]
        assert not missing, f"{path}: {missing}"
