"""What the pages name is there: tables and their CSV files, links, files, and the README's table as the CSV has it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if not {"_build", "generated"} & set(p.relative_to(DOCS).parts)]
FILES = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"))]


@pytest.fixture
def fragments() -> ModuleType:
    return _tool("fragments")


def _tool(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS / "tools"), str(ROOT / "benchmarks"), *sys.path])
        return importlib.import_module(name)


def prose(path: Path) -> str:
    """The page without its code."""
    return re.sub(r"^(```|~~~).*?^\1$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Anchors of headings, as MyST and GitHub make them."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_internal_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        where = (page.parent / name).resolve() if name else page
        if "generated" in where.parts:
            made = {"board/index.md", "gallery/index.md", *(f"figures/{name}" for name in _tool("pictures").NAMES)}
            assert where.relative_to(DOCS / "generated").as_posix() in made
            continue
        assert where.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(where), f"{page.name}: {target} is no heading there"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in PAGES:
        for body in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            entries = [line.strip() for line in body.splitlines() if line.strip() and not line.startswith(":")]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
    assert {p.resolve() for p in PAGES} - listed == {DOCS / "index.md"}


def test_included_tables_are_made_and_made_tables_are_included(fragments: ModuleType, tmp_path: Path) -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    included = set(re.findall(r"\{include\} (?:\.\./)*generated/tables/(\w+)\.md", text))
    assert included == set(fragments.TABLES) | set(fragments.FROM_CODE)
    for source, _ in fragments.TABLES.values():
        assert (fragments.RESULTS / f"{source}.csv").is_file()
    fragments.write(tmp_path)
    for name in included:
        rows = [line for line in (tmp_path / f"{name}.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
        assert len(rows) > 2, f"{name} has no rows"


@pytest.mark.parametrize("page", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rows_of_a_table_have_the_cells_of_its_head(page: Path) -> None:
    """A sign | in a cell ends it, in code too, unless it is written \\|: the rest of the row would be lost."""
    for block in re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


def test_no_results_are_typed() -> None:
    """A table with three numbers in a row stands in a CSV file, not on a page."""
    for page in PAGES:
        typed = re.findall(r"^\|(?:.*\| *[\d.]+ %? *){3,}\|", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert not typed, f"{page.name}: {typed}"


def test_table_of_the_readme_is_what_the_csv_says(fragments: ModuleType) -> None:
    tables, text = fragments.tables, (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == tables.with_table(text), "run: python benchmarks/tables.py --readme"
    rows = fragments.read(fragments.RESULTS / "sdp_crown.csv")
    assert all(row["violations"] == "0" for row in rows), "the README says that no certified image fell to an attack"


def test_readme_fits_on_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


def test_page_of_every_public_name() -> None:
    """The reference documents what the package and its public folders export."""
    import lirpa_lip
    from lirpa_lip import errors, losses, nn, norms, plots, verify

    text = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    whole = {"lirpa_lip.errors"}  # documented with all members
    for module in (lirpa_lip, losses, nn, norms, plots, verify):
        for name in module.__all__:
            found = getattr(module, name)
            home = getattr(found, "__module__", "")
            ways = (rf"\.{name}\b", rf"automodule:: {home}\n", rf"`(lirpa_lip\.\w+\.)?{name}`", rf"lirpa_lip\.{name} <")
            documented = any(re.search(way, text) for way in ways)
            assert documented, f"{module.__name__}.{name} is not in docs/api"
    assert all(f"automodule:: {name}" in text for name in whole) and errors


def test_links_of_the_built_site_are_followed(tmp_path: Path) -> None:
    links = _tool("links")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text('<p id="here"><a href="../a.html#there">a</a> <img src="no.png"></p>')
    (tmp_path / "a.html").write_text('<a href="sub/b.html#here">b</a><a href="c.html">c</a><a href="https://x">x</a>')
    assert links.broken(tmp_path) == ["a.html: c.html", "sub/b.html: ../a.html#there", "sub/b.html: no.png"]


def test_attributes_that_share_a_text_are_entries_of_their_own() -> None:
    apart = _tool("docstrings").attributes_apart
    text = [
        "What.",
        "",
        "Attributes:",
        "    low, high: ends of it,",
        "        both.",
        "    c: one.",
        "",
        "Args:",
        "    a, b: two.",
    ]
    made = ["    low: ends of it,", "        both.", "    high: as ``low``.", "    c: one."]
    assert apart(text) == [*text[:3], *made, *text[6:]]
    assert apart(text[:5]) == [*text[:3], *made[:3]]
