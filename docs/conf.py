"""How the manual is made of these pages.

The pages are plain reStructuredText, as a forge and an editor show them too: they link to files
(``other.rst``), and name pages by their path from the project's folder (``docs/threats.rst``).
Both become links to pages here; one that leads nowhere is a warning, and warnings are errors.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_DOCS = Path(__file__).parent
_ROOT = _DOCS.parent
sys.path.insert(0, str(_ROOT))

from fleece.version import VERSION  # noqa: E402

project = "fleece"
author = "the authors of fleece"
version = release = VERSION
html_title = f"fleece {VERSION}"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.towncrier.ext"]
default_role = "literal"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True
towncrier_draft_autoversion_mode = "draft"
towncrier_draft_include_empty = True
towncrier_draft_working_directory = _ROOT
towncrier_draft_config_path = "towncrier.toml"

nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of others, and such as the library makes itself
suppress_warnings = ["ref.python"]  # an attribute's name is that of several classes' ones
keep_warnings = True
exclude_patterns = ["_build"]
highlight_language = "none"

html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_theme_options = {"navigation_with_keys": True}

_SEVERAL = re.compile(r"( {4})(\w+)((?:, \w+)+): (.+)")
_NAMED = re.compile(r"\bdocs/((?!interop/)[\w/.-]+)\.rst\b")


class LinkPages(SphinxTransform):
    """Turn what leads to a page's file into a link to the page."""

    default_priority = 400

    def apply(self, **kwargs: object) -> None:
        """Do so in one page."""
        here = self.env.docname
        for link in list(self.document.findall(nodes.reference)):
            target = link.get("refuri", "")
            if target.endswith(".rst") and "://" not in target:
                page = os.path.normpath(Path(here).parent / target).removesuffix(".rst")
                link.replace_self(_link(here, page, link, link.children))
        for text in list(self.document.findall(nodes.Text)):
            if not isinstance(text.parent, nodes.literal | nodes.literal_block | nodes.title):
                _name_pages(here, text)


def _name_pages(here: str, text: nodes.Text) -> None:
    """Put a link with the page's title where a text has the path of a page."""
    parts: list[nodes.Node] = []
    done = 0
    for found in _NAMED.finditer(text):
        parts += [nodes.Text(text[done : found.start()]), _link(here, found[1], text.parent)]
        done = found.end()
    if parts:
        text.parent.replace(text, [*parts, nodes.Text(text[done:])])


def _link(here: str, page: str, where: nodes.Node, shown: Sequence[nodes.Node] = ()) -> nodes.Node:
    """A link from one page to another, shown as that one's title if nothing else is given."""
    link = addnodes.pending_xref(
        "",
        nodes.inline("", "", *shown),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{page}",
        refexplicit=bool(shown),
        refwarn=True,
        refdoc=here,
    )
    link.source, link.line = where.source, where.line
    return link


def _part_names(*told: Any) -> None:
    """Give each of several names that a docstring explains at once a line of its own.

    Of `one, two: text` napoleon would make a type and a name.
    """
    lines: list[str] = told[-1]
    for number in reversed(range(len(lines))):
        if found := _SEVERAL.match(lines[number]):
            indent, first, others, text = found.groups()
            end = number + 1
            while end < len(lines) and lines[end].startswith(f"{indent}    "):
                end += 1
            lines[end:end] = [f"{indent}{name}: see {first}." for name in others.split(", ")[1:]]
            lines[number] = f"{indent}{first}: {text}"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _part_names, priority=400)  # napoleon has 500
    app.add_transform(LinkPages)
