"""The example in the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path


def test_example_runs(capsys):
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    verdicts = capsys.readouterr().out.splitlines()[0]
    assert 4 <= verdicts.count("True") < 8 and "deterministic" in verdicts
