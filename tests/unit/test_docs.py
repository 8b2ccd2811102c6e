"""The documents: well formed, all they refer to is there, every option is on its verb's page."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import itertools
import operator
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import docutils.core
import pytest
from docutils import nodes

import fleece
from fleece import api
from fleece.cli.grammar import parser
from fleece.cli.leaving_out import parsed

_ROOT = Path(__file__).parents[2]
_DOCS = _ROOT / "docs"
_PAGES = sorted([*_ROOT.glob("*.rst"), *_DOCS.rglob("*.rst"), *(_ROOT / "changes").glob("*.rst")])
_PLAIN = [
    page
    for page in _PAGES
    if page.name not in {"index.rst", "changelog.rst", "glossary.rst"} and page.parent.name != "api"
]
"""The pages without directives of Sphinx's; `unit/test_manual.py` builds all."""
_WITH_DOCS = [
    *_PAGES,
    *sorted(path for part in ("fleece", "tests", "tools") for path in (_ROOT / part).rglob("*.py")),
]


def _named(path: Path) -> str:
    return str(path.relative_to(_ROOT))


def _verbs(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


_VERBS = _verbs(parser())


@functools.cache
def _read(page: Path) -> nodes.document:
    return docutils.core.publish_doctree(
        page.read_text(),
        source_path=str(page),
        settings_overrides={"report_level": 2, "halt_level": 2, "_disable_config": True},
    )


@pytest.mark.parametrize("page", _PLAIN, ids=_named)
def test_a_page_is_well_formed(page: Path) -> None:
    _read(page)


def test_no_row_of_a_table_is_two_by_mistake() -> None:
    """A line of a simple table whose first cell has text begins a row: the others would be empty.

    Tables of figures have empty cells.
    """
    empty = [
        f"{_named(page)}: {row.astext().split()}"
        for page in _PLAIN
        if page.parent.name != "decisions" and page.name != "benchmarks.rst"
        for body in _read(page).findall(nodes.tbody)
        for row in body.findall(nodes.row)
        if not all(cell.astext() for cell in row.findall(nodes.entry))
    ]
    assert empty == []


def test_what_is_referred_to_is_there() -> None:
    for path in _WITH_DOCS:
        text = path.read_text()
        for found in re.findall(r"\bdocs/[\w/.-]+\.rst", text):
            if "docs/interop/" not in found:  # QEMU's
                assert (_ROOT / found).is_file(), f"{_named(path)} refers to {found}"
        if path.suffix == ".rst":
            for found in re.findall(r"<([\w/.-]+\.rst)>`_", text):
                assert (path.parent / found).is_file(), f"{_named(path)} links to {found}"


@pytest.mark.parametrize("verb", _VERBS)
def test_a_verb_has_its_page_and_every_option_stands_on_it(verb: str) -> None:
    page = (_DOCS / "reference" / f"{verb}.rst").read_text()
    terms = re.findall(r"^(``-.*``)$", page, re.MULTILINE)
    described = {word for term in terms for word in re.findall(r"``(--?[\w-]+)", term)}
    made = _VERBS[verb]
    options = {
        option
        for one in (made, *_verbs(made).values())
        for action in one._actions
        for option in action.option_strings
        if option != "-h"
    }
    assert described == options


@pytest.mark.parametrize("verb", _VERBS)
def test_the_synopsis_of_a_verb_is_that_of_the_index(verb: str) -> None:
    index = (_DOCS / "reference" / "index.rst").read_text()
    page = (_DOCS / "reference" / f"{verb}.rst").read_text()
    synopsis = page.partition("::\n\n")[2].partition("\n\n")[0]
    assert synopsis.startswith(f"    fleece {verb} ")
    assert f"{synopsis}\n" in index
    assert f"`fleece {verb} <{verb}.rst>`_" in index


def _plain(text: str) -> str:
    """In one line, without marks, and as it is in the middle of a sentence."""
    return " ".join(text.replace("`", "").split()).rstrip(".").lower()


@pytest.mark.parametrize("verb", _VERBS)
def test_the_default_that_a_verbs_help_tells_is_the_one_on_its_page(verb: str) -> None:
    page = (_DOCS / "reference" / f"{verb}.rst").read_text()
    told: dict[str, str] = {}
    for terms, text in re.findall(r"^(``-.*``)\n((?: {4}.*\n|\n(?= {4}))+)", page, re.MULTILINE):
        for option in re.findall(r"``(--[\w-]+)", terms):
            told[option] = told.get(option, "") + _plain(text)
    for one in (_VERBS[verb], *_verbs(_VERBS[verb]).values()):
        for action in one._actions:
            default = re.search(r"default: ([^;]+)", action.help or "")
            for option in action.option_strings:
                if default is not None and option.startswith("--"):
                    assert _plain(default[0]) in told[option], option


_FOREIGN = ("gone on with", "dead run", "held against", "what it does not, yet")
"""What no native writer says (CONTRIBUTING.rst, "Words")."""


def test_no_text_is_written_as_no_native_writer_would() -> None:
    told = {_named(path): path.read_text() for path in _PAGES if path.parent.name != "decisions"}
    del told["CONTRIBUTING.rst"]
    told["the code"] = _messages()
    found = {(name, phrase) for name, text in told.items() for phrase in _FOREIGN if phrase in text}
    assert not found


def test_the_first_page_is_short_and_in_order() -> None:
    text = (_ROOT / "README.rst").read_text()
    titles = re.findall(r"^(\w.*)\n[-=]{3,}$", text, re.MULTILINE)
    order = ["fleece", "Install", "First backup", "Restore", "Promises", "Limitations", "Documents"]
    assert titles == order
    assert len(text.splitlines()) < 120


def _messages() -> str:
    """All texts of the code, one a line, with ... for what is put into them."""
    found: list[str] = []
    for path in (_ROOT / "fleece").rglob("*.py"):
        parts: set[int] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts |= {id(part) for part in node.values}
                texts = (p.value if isinstance(p, ast.Constant) else "..." for p in node.values)
                found.append("".join(map(str, texts)))
            elif isinstance(node, ast.Constant) and id(node) not in parts:
                found.append(str(node.value))
    return "\n".join(found)


def test_every_message_that_is_explained_is_one_that_fleece_says() -> None:
    """But for those of QEMU and of the kernel."""
    messages = _messages()
    page = (_DOCS / "troubleshooting.rst").read_text()
    others = ("Failed to get", "No locks available", "Device or resource busy", "Permission denied")
    unknown = [
        part.strip()
        for line in page.splitlines()
        if line.startswith("**") and "(QEMU" not in line and "(the QEMU" not in line
        for quoted in re.findall(r"\*\*(.+?)\*\*", line)
        for part in re.split(r"\.\.\.|[;:]", re.sub(r"^(rescan|full)( \(or \w+\))?: ", "", quoted))
        if part.strip() not in messages and not part.startswith(others)
    ]
    assert unknown == []


def test_the_glossary_has_the_words_that_the_project_gave_a_meaning() -> None:
    """As docs/internals/architecture.rst has them, "Words"."""
    words = (_DOCS / "internals" / "architecture.rst").read_text().partition("\nWords\n")[2]
    table = words.split("\n====")[1]
    ours = set(re.findall(r"^(?: )?(\w[\w ]*?)  ", table, re.MULTILINE))
    glossary = (_DOCS / "glossary.rst").read_text()
    assert {"source", "segment"} <= ours
    assert ours - set(re.findall(r"^ {4}(\w[^:\n]*)$", glossary, re.MULTILINE)) == set()


def test_every_public_name_is_on_a_page_of_the_library_once() -> None:
    pages = (_DOCS / "reference" / "api").glob("*.rst")
    text = "\n".join(page.read_text() for page in pages)
    shown = re.findall(r"^\.\. (?:auto\w+|data):: (\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(api.__all__)


_LIBRARY = docutils.core.publish_doctree(
    (_DOCS / "reference" / "library.rst").read_text(), settings_overrides={"report_level": 5}
)
_EXAMPLES = [
    block.astext()
    for block in _LIBRARY.findall(nodes.literal_block)
    if not block.astext().startswith("[project")
]


@pytest.mark.parametrize("text", _EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_an_example_of_the_library_calls_what_there_is_as_it_is(text: str) -> None:
    """Each name is public, and each call has arguments that it takes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fleece":
            assert node.attr in api.__all__
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and re.fullmatch(r"fleece(\.\w+)+", name):
            called = operator.attrgetter(name.removeprefix("fleece."))(fleece)
            named = {str(each.arg): each.value for each in node.keywords}
            inspect.signature(called).bind(*node.args, **named)


def _commands(page: Path) -> Iterator[str]:
    """What a page's examples call fleece with; a synopsis is none."""
    for block in _read(page).findall(nodes.literal_block):
        for line in block.astext().replace("\\\n", " ").splitlines():
            found = re.match(r"(?:[$#] |.*ExecStart=\S*/|.*  root  )?fleece (?=[a-z-]+)(.*)", line)
            if found is not None and not re.search(r"\[|\||\$\(|\.\.\.", found[1]):
                yield found[1]


@pytest.mark.parametrize("page", _PLAIN, ids=_named)
def test_an_example_of_the_command_line_is_one(page: Path) -> None:
    for line in _commands(page):
        words = itertools.takewhile(
            lambda word: word not in {"<", ">", ";", "&", "&&"}, shlex.split(line, comments=True)
        )
        parsed(list(words), {"FLEECE_STORE": "/backup"})
