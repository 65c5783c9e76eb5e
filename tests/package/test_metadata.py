"""The package as it is described and built: one version, every folder a package, help in groups."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import lirpa_lip
from lirpa_lip.cli import main
from lirpa_lip.cli.train import train

ROOT = Path(__file__).resolve().parents[2]


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in (ROOT / "lirpa_lip").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_setuptools_finds_every_file():
    """What a wheel would hold, without building one (tests/package/smoke.py does)."""
    code = "from setuptools import find_packages; print(*find_packages(include=['lirpa_lip', 'lirpa_lip.*']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "lirpa_lip").rglob("*.py")}
    assert set(done.stdout.split()) == expected


def test_one_version():
    assert f"\nversion: {lirpa_lip.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {lirpa_lip.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r'^version = "', text, re.MULTILINE)
    assert lirpa_lip.__version__ in CliRunner().invoke(main, ["--version"]).output


def test_flags_of_train_are_in_groups():
    text = CliRunner().invoke(main, ["train", "--help"]).output
    for head in ("Run:", "Data:", "Network:", "Loss and bound:", "Optimisation:"):
        assert f"\n{head}\n" in text
    rest = text.split("\nOptions:\n")[1]
    assert re.findall(r"--[a-z-]+", rest) == ["--help"], rest
    names = [o for p in train.params if isinstance(p, click.Option) for o in p.opts]
    assert all(name in text for name in names)


def test_methods_are_listed_without_a_network():
    result = CliRunner().invoke(main, ["compare", "--methods", "help"])
    assert result.exit_code == 0 and "sdp-crown" in result.output


@pytest.mark.parametrize("call", [["--help"], ["train", "--help"], ["compare", "--methods", "help"]])
def test_a_closed_pipe_is_no_error(call):
    command = [sys.executable, "-m", "lirpa_lip.cli", *call]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert "Error" not in error and "Traceback" not in error
