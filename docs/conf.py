"""Settings of the documentation's pages: `python -m sphinx -W -b html docs build/docs`."""

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import cvae_jax

ROOT = Path(__file__).parents[1]

project = "cvae_jax"
author = "The authors of cvae_jax"
project_copyright = author
version = release = cvae_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["html_image"]  # README's pictures have a width
myst_heading_anchors = 3  # links to headings, as on GitHub
default_role = "code"  # our docstrings have `names` in single quotes, as Markdown has
highlight_language = "text"  # of blocks that name none; most are commands
napoleon_use_ivar = True  # attributes are a list, like parameters
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"npt.ArrayLike": "ArrayLike"}
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"cvae_jax {release}"
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#175e8a",
        "color-brand-content": "#175e8a",
        "color-api-name": "#0f4c75",
        "color-api-pre-name": "#5b7083",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc0ee",
        "color-brand-content": "#7cc0ee",
        "color-api-name": "#9fd3f7",
        "color-api-pre-name": "#8fa3b3",
    },
}
html_static_path = ["style"]
html_css_files = ["pages.css"]

_INCLUDED = re.compile(r"<!-- include (\S+) -->")
_OPTION, _HIDDEN = re.compile("--[a-z][a-z-]*[a-z]"), "\ue000"
_LINK = re.compile(r'(\]\(|src=")(?!https?:|#)([^)#"\s]+)')


def take_in(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the files of the repository where pages ask for them, and lead links to pages.

    A link to a file that is a page leads there, one to another file of the repository to a copy.
    """
    docs = Path(app.srcdir)
    pages = {
        (ROOT / file).resolve(): page
        for page in docs.glob("*.md")
        for file in _INCLUDED.findall(page.read_text(encoding="utf-8"))
    }

    def lead(text: str, folder: Path) -> str:
        def target(link: re.Match[str]) -> str:
            path = (folder / link[2]).resolve()
            return link[1] + Path(os.path.relpath(pages.get(path, path), docs)).as_posix()

        return _LINK.sub(target, text)

    def contents(mark: re.Match[str]) -> str:
        path = ROOT / mark[1]
        app.env.note_dependency(str(path))
        return lead(path.read_text(encoding="utf-8"), path.parent)

    source[0] = _INCLUDED.sub(contents, lead(source[0], docs))


def hide_colons(_app: Sphinx, what: str, *rest: Any) -> None:
    """Hide colons from napoleon, which takes "Model. mlp: the original" for a type and a text."""
    if what == "attribute":
        lines: list[str] = rest[-1]
        lines[:] = [line.replace(":", _HIDDEN) for line in lines]


def show_colons(_app: Sphinx, what: str, *rest: Any) -> None:
    """Show colons again, and options as code."""
    if what == "attribute":
        lines: list[str] = rest[-1]
        lines[:] = [_OPTION.sub(r"`\g<0>`", line.replace(_HIDDEN, ":")) for line in lines]


def setup(app: Sphinx) -> None:
    """Connect the functions above; napoleon's own has the priority 500."""
    app.connect("source-read", take_in)
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
