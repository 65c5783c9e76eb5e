"""Code on the pages runs as it stands, and prints what the page says.

On every page of the site ``python`` blocks run in order, in an empty folder; so do ``sh`` blocks, by the command line's
own parser. A ``text`` block right behind one is its output, ``...`` for what may vary. (The README's block and the
examples of notation.md have tests of their own.)
``bash`` blocks are commands that tests/docs/test_commands.py reads without running them.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from lirpa_lip.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXTS = {
    str(p.relative_to(DOCS)): p.read_text(encoding="utf-8")
    for p in sorted(DOCS.rglob("*.md"))
    if not {"_build", "generated"} & set(p.relative_to(DOCS).parts)
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


RUN = [page for page, text in TEXTS.items() if re.search(r"^```(python|sh)\n(?!>>>)", text, re.MULTILINE)]


def test_they_are_found() -> None:
    assert {"index.md", "clarke.md", "norms.md", "training.md", "guides/onnx.md"} <= set(RUN)


@pytest.mark.parametrize("page", RUN)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "guides/onnx.md":
        pytest.importorskip("onnx2pytorch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    printed, end = "", 0
    for block in BLOCK.finditer(TEXTS[page]):
        (language, body), behind, end = block.groups(), not TEXTS[page][end : block.start()].strip(), block.end()
        if language == "python":
            printed = run(body, page, names)
        elif language == "sh":
            printed = "".join(call(line) for line in body.replace("\\\n", " ").splitlines())
        elif language == "text" and behind:
            assert doctest.OutputChecker().check_output(body, printed, SAME), f"{page} says\n{body}\nnot\n{printed}"


def run(body: str, page: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(body, page, "exec"), names)
    return out.getvalue()


def call(line: str) -> str:
    program, *arguments = shlex.split(line)
    assert program == "lirpa-lip"
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "arning" not in result.stderr, f"{line} warns whoever follows the page:\n{result.stderr}"
    return result.stdout
