"""The page of operators is what the tables say, and auto_LiRPA's classes are all on it, with the rules it names."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
from auto_LiRPA import bound_ops
from auto_LiRPA.bound_ops import Bound

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.append(str(DOCS / "tools"))

import operators  # noqa: E402

from lirpa_lip.network.adapters.table import ADAPTERS, REFUSED, RELAXED  # noqa: E402


def test_the_page_is_up_to_date():
    assert operators.PAGE.read_text(encoding="utf-8") == operators.page(), "run python docs/tools/operators.py"


def test_a_change_of_the_table_is_found(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "BoundNew", ADAPTERS["BoundAbs"])
    with pytest.raises(AssertionError, match="run python"):
        test_the_page_is_up_to_date()


def test_every_class_of_auto_lirpa_is_on_the_page():
    known = {key.removeprefix("Bound") for key in {*ADAPTERS, *REFUSED, *RELAXED}} | set(operators.OTHERS)
    missing = operators.classes(Bound) - known - operators.ABSTRACT
    assert not missing, f"say in docs/tools/operators.py what becomes of {sorted(missing)}"


def test_rules_that_are_theirs_exist():
    ours = operators._ours()
    for key in ADAPTERS:
        kind = getattr(bound_ops, key, None)
        if key in ours or kind is None:
            continue
        source = "".join(
            inspect.getsource(c) for c in kind.__mro__ if c not in (Bound, object) and "torch." not in c.__module__
        )
        assert "use_default_ibp = True" in source or kind.interval_propagate is not Bound.interval_propagate, key
        assert kind.bound_backward is not Bound.bound_backward, key
