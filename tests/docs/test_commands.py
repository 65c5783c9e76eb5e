"""Every command that a page shows is one that its program reads: real sub-commands, options and values."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lirpa_lip.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if not {"_build", "generated"} & set(p.relative_to(DOCS).parts)]
PAGES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
STARTS = ("lirpa-lip ", "torchrun ", "accelerate launch", "python benchmarks/", "python examples/", "make ")


def shown(page: Path) -> Iterator[str]:
    """Commands in blocks, fenced or indented, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```(?:sh|bash|)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(
        r"^ {4}(\S.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    for line in [line for block in fenced for line in block.splitlines()] + indented:
        for part in line.partition("  #")[0].partition(" # ")[0].split("&&"):
            if part.strip().startswith(STARTS):
                yield part.strip()


def script(name: str) -> click.Command:
    folder = str((ROOT / name).parent)
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    command: click.Command = module.main
    return command


def check(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert all("=" in word or word in targets for word in words[1:]), command
    elif words[0] == "python":
        script(words[1]).make_context(words[1], words[2:])
    else:
        rest = words[words.index("lirpa_lip.cli") + 1 :] if words[0] != "lirpa-lip" else words[1:]
        if rest[0] == "--help" or (len(rest) > 1 and rest[1] == "--help"):
            assert CliRunner().invoke(main, rest).exit_code == 0
            return
        found = main.get_command(click.Context(main), rest[0])
        assert found is not None, command
        found.make_context(rest[0], rest[1:])


@pytest.mark.parametrize("page", [p for p in PAGES if any(shown(p))], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in shown(page):
        check(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_named_in_the_text_exist(page: Path) -> None:
    """`lirpa-lip verify … --data X` between backticks has placeholders, but its options are real."""
    for name, rest in re.findall(r"`lirpa-lip ([a-z]+)([^`]*)`", page.read_text(encoding="utf-8")):
        found = main.get_command(click.Context(main), name)
        assert found is not None, name
        known = {option for p in found.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert set(re.findall(r"(?<!\w)--[a-z][\w-]*", rest)) <= known, f"{page.name}: lirpa-lip {name}{rest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_compiles(page: Path) -> None:
    for body in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if not body.startswith(">>>"):
            compile(body, page.name, "exec")


SOURCES = [*sorted((DOCS / "gallery").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_what_examples_import_is_there(path: Path) -> None:
    """The gallery runs when the site is built; here, that a name it imports has not gone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lirpa_lip"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
