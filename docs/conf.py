"""Sphinx: `make docs` builds this site; every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS), str(DOCS / "tools")]

import docstrings  # noqa: E402
import links  # noqa: E402
import pages  # noqa: E402
from sphinx.errors import SphinxError  # noqa: E402

import lirpa_lip  # noqa: E402

project, author = "lirpa_lip", "the lirpa_lip authors"
release = version = lirpa_lip.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
nb_execution_mode = "off"  # what runs on the site are the gallery and the doctests
default_role = "code"  # single backticks in docstrings are code
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
exclude_patterns = [
    "_build",
    "generated/tables",
    "generated/gallery/*.ipynb",
    "**sg_execution_times.rst",
    "**/GALLERY_HEADER.rst",
    "gallery",
]
html_theme = "pydata_sphinx_theme"
html_title = "lirpa_lip"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "header_links_before_dropdown": 8}
html_theme_options["navbar_persistent"] = ["search-button"]  # a field takes the header to a second line
# pages of code are wide, and short enough to be seen at a glance
WITH_CONTENTS = "api/* theory/* architecture clarke extending install limits norms training verify".split()
html_theme_options["secondary_sidebar_items"] = {page: ["page-toc"] for page in WITH_CONTENTS}
toc_object_entries_show_parents = "hide"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {"install": [], "limits": [], "operators": []}  # pages without a section


def figures(block: tuple, block_vars: dict, gallery_conf: dict) -> str:
    """Saves the `matplotlib.figure.Figure` that a block ends with: sphinx-gallery itself looks for pyplot's only."""
    from matplotlib.figure import Figure
    from sphinx_gallery.scrapers import figure_rst

    lines = [line for line in block[1].strip().splitlines() if line]
    shown = block_vars["example_globals"].get(lines[-1]) if lines else None
    if not isinstance(shown, Figure):
        return ""
    path = next(block_vars["image_path_iterator"])
    shown.savefig(path, dpi=120)
    return str(figure_rst([path], gallery_conf["src_dir"]))


sphinx_gallery_conf = {
    "image_scrapers": ("conf.figures",),
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "ignore_repr_types": r"matplotlib\.figure|torch\.nn",  # the picture is shown; of `model.eval()` nothing
}
suppress_warnings = ["config.cache"]


def check_links(app: Any, exception: Exception | None) -> None:
    """A link that leads nowhere ends the build."""
    if exception is None and (found := links.broken(Path(app.outdir))):
        raise SphinxError("links that lead nowhere:\n" + "\n".join(found))


def attributes(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads them."""
    lines[:] = docstrings.attributes_apart(lines)


def skip(app: Any, what: str, name: str, found: Any, skipped: bool, options: Any) -> bool | None:
    """Fields of a named tuple: they stand among its attributes, and their own docstring is a number."""
    return True if (getattr(found, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Tables come from the CSV files, at every build; what was generated of an example that is gone, goes."""
    pages.write(DOCS / "generated")
    app.connect("build-finished", check_links)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", attributes, priority=100)
    there = {path.stem for path in (DOCS / "gallery").glob("plot_*.py")}
    for path in (DOCS / "generated" / "gallery").glob("plot_*"):
        if path.name.split(".")[0] not in there:
            path.unlink()
