"""Sphinx: `make docs` builds this site; every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "tools")]

import pages  # noqa: E402

import lirpa_lip  # noqa: E402

project, author = "lirpa_lip", "the lirpa_lip authors"
release = version = lirpa_lip.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # what runs on the site are the gallery and the doctests
default_role = "code"  # single backticks in docstrings are code
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = [
    "_build",
    "generated/gallery/*.ipynb",
    "**sg_execution_times.rst",
    "**/GALLERY_HEADER.rst",
    "gallery",
]
html_theme = "pydata_sphinx_theme"
html_title = "lirpa_lip"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
}
suppress_warnings = ["config.cache"]


def setup(app: object) -> None:
    """Tables come from the CSV files, at every build."""
    pages.write(DOCS / "generated")
