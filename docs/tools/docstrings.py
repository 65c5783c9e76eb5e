"""What Sphinx's reader of docstrings would misread, written otherwise."""

from __future__ import annotations

import re


def attributes_apart(lines: list[str]) -> list[str]:
    """``a, b: text`` among attributes as two entries: as one, ``a`` would be taken for the type of ``b``."""
    inside, out, others = False, [], []
    for line in lines:
        if not line.startswith(" " * 8):  # the end of an entry
            out, others = out + others, []
        inside = line == "Attributes:" or (inside and (not line or line.startswith(" ")))
        several = re.fullmatch(r" {4}(\w+), ([\w, ]+): (.*)", line) if inside else None
        if several:
            others = [f"    {name}: as ``{several[1]}``." for name in several[2].split(", ")]
            line = f"    {several[1]}: {several[3]}"
        out.append(line)
    return out + others
