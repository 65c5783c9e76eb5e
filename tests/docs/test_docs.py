"""What the documentation prints is what the code prints."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", ["notation.md"])
def test_the_examples_print_what_the_page_says(page: str) -> None:
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 0 and failed == 0


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_files_that_a_page_names_are_there(page: str) -> None:
    root = DOCS.parent
    text = (DOCS / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+/[\w.]+\.(?:py|yaml|csv|png))[`:,; ]", text))
    missing = [path for path in sorted(named) if not ((root / path).exists() or (root / "lirpa_lip" / path).exists())]
    assert not missing
