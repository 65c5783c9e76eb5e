"""Links of the built site that lead nowhere, found without network: files and anchors of every page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """What a page links to, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.targets += [found[name] for name in ("href", "src") if name in found]


def broken(site: Path) -> list[str]:
    """``page: target`` of every link inside the site to a file or an anchor that is not there."""
    pages = {path.resolve(): _Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        for target in dict.fromkeys(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or (not parts.path and parts.fragment in ("", "top")):
                continue
            where = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = where in pages and (not parts.fragment or unquote(parts.fragment) in pages[where].anchors)
            if not (known or (where not in pages and where.is_file())):
                found.append(f"{path.relative_to(site.resolve())}: {target}")
    return found
