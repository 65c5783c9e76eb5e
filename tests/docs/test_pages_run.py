"""Code on the pages runs as it stands, and prints what the page says.

In the README, on the start page and in the guides ``python`` blocks run in order, in an empty folder; so do ``sh``
blocks, by the command line's own parser, without a warning. A ``text`` block right behind one is its output, ``...``
for what may vary.
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
PAGES = [*sorted(str(p.relative_to(DOCS)) for p in (DOCS / "guides").glob("*.md")), "index.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in (DOCS / p).read_text(encoding="utf-8")])
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "[onnx]" in (DOCS / page).read_text(encoding="utf-8"):
        pytest.importorskip("onnx2pytorch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    printed = ""
    for language, body in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if language == "python":
            printed = run(body, page, names)
        elif language == "sh":
            printed = "".join(call(line) for line in body.replace("\\\n", " ").splitlines())
        elif language == "text":
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
