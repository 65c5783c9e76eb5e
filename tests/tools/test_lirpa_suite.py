"""The comparison of auto_LiRPA's own tests: a difference without a reason fails, and every reason has a name."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

SUITE = runpy.run_path(str(Path(__file__).with_name("lirpa_suite.py")))


def outcomes(**found: str) -> dict[str, dict[str, str]]:
    return {name: {"outcome": outcome, "message": "why"} for name, outcome in found.items()}


def test_differences_need_reasons(capsys):
    plain, ours = (
        outcomes(a="passed", b="passed", c="failed", d="skipped"),
        outcomes(a="passed", b="failed", c="passed"),
    )
    assert SUITE["differences"](plain, ours) == ["b", "c"]
    assert SUITE["report"](plain, ours, {}) == 2
    assert SUITE["report"](plain, ours, {"b": "narrower"}) == 1
    assert "reason: narrower" in capsys.readouterr().out
    assert SUITE["report"](plain, plain, {}) == 0


def test_reasons_are_sentences():
    reasons = json.loads(Path(SUITE["REASONS"]).read_text(encoding="utf-8"))
    assert reasons and all(name.startswith("test_") and len(reason) > 20 for name, reason in reasons.items())
