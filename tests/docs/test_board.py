"""The board is what the CSV files say, and its commands are ones that their scripts read."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "tools"), str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module("pages")


def test_pages_are_written_with_every_link_on_the_board(pages, tmp_path):
    pages.write(tmp_path)
    entries = pages.board()
    names = {e.network for e in entries}
    assert len(names) >= 12
    index = (tmp_path / "board" / "index.md").read_text()
    assert all(f"({name}.md)" in index and (tmp_path / "board" / f"{name}.md").exists() for name in names)
    assert "mnist_cnn_a_adv, 0.3" in (tmp_path / "tables" / "methods.md").read_text()


def test_no_certificate_exceeds_what_an_attack_leaves(pages):
    assert all(e.certified <= e.pgd + 1e-9 <= e.clean + 2e-9 for e in pages.board())


def test_commands_are_ones_their_scripts_read(pages):
    for command in dict.fromkeys(e.command for e in pages.board()):
        _, script, *arguments = shlex.split(command)
        main = importlib.import_module(Path(script).stem).main
        main.make_context(script, arguments)
