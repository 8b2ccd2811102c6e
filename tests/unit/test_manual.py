"""The manual: built of the pages without a warning, and every link in it leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import ViewportSize

from tests.rig.browser import browser

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the manual's pages, in HTML."""
    made = tmp_path_factory.mktemp("manual")
    places = (_ROOT / "docs", made / "html", "-d", made / "trees")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2", *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return made / "html"


class _Page(HTMLParser):
    """What a page links to, and which places in it can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.places.add(told.get("id") or "")
        for name in ("href", "src"):
            if told.get(name):
                self.links.append(str(told[name]))


def _dead(manual: Path) -> Iterator[str]:
    pages = {path: _Page(path) for path in sorted(manual.rglob("*.html"))}
    assert len(pages) > 90
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].places if target in pages else {"", parts.fragment}
            if not target.is_file() or unquote(parts.fragment) not in known:
                yield f"{path.relative_to(manual)}: {link}"


def test_every_link_of_the_manual_leads_to_a_place_in_it(manual: Path) -> None:
    assert list(_dead(manual)) == []


_PHONE: ViewportSize = {"width": 360, "height": 740}
_CUT_OFF = """() => [...document.querySelectorAll("article *")]
    .filter((part) => part.getBoundingClientRect().right > innerWidth)
    .filter((part) => !part.closest(".table-wrapper, pre"))
    .map((part) => part.textContent)"""
"""What reaches beyond the screen, but for what scrolls by itself."""


def test_on_a_phone_nothing_is_cut_off(manual: Path) -> None:
    names = ("index", "threats", "reference/backup", "reference/library", "reference/api/restore")
    with browser() as chromium:
        page = chromium.new_page(viewport=_PHONE)
        for name in names:
            page.goto((manual / f"{name}.html").as_uri())
            assert page.evaluate(_CUT_OFF) == []
