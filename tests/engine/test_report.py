"""`fleece report`: a page that tells what the stores know, as a real browser shows it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from fleece.store.init import init
from tests.engine.history import Guest
from tests.engine.scene import INTACT
from tests.rig.browser import browser, shown
from tests.unit import long

_EVIL = "<script>alert(1)</script>\N{HEBREW LETTER ALEF}"
_EVIL_PLACE = "<b>\N{RIGHT-TO-LEFT OVERRIDE}store"
"""No point takes such a name of a guest, but a folder does."""
_EVIL_TAG = "<img src=x onerror=alert(2)>"
_UNFOLD = """
document.querySelectorAll("details").forEach(one => one.open = true)
document.querySelectorAll(".guest").forEach(one => one.style.contentVisibility = "visible")
"""
"""All that a reader can make appear, is there."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Guests in every state."""
    place = tmp_path_factory.mktemp("report") / _EVIL_PLACE
    made, now, run = init(place), datetime.now(UTC).replace(microsecond=0), INTACT.run
    day = timedelta(days=1)
    long.fill(made, 40, guest="web1", begin=now - 40 * day - day / 24, every=day)
    long.fill(made, 9, guest="stale", begin=now - 20 * day, every=day)
    long.fill(made, 12, guest="rotten", begin=now - 3 * day, every=day / 4)
    long.fill(made, 3, guest=_EVIL, begin=now - day, every=day / 8)
    parted = Guest(place, "parted")
    parted.holding({"vda": b"x" * 65536, "vdb": b"y" * 65536})
    parted.become(vda=b"z" * 65536)
    parted.paths["vdb"][1].unlink()
    run("pin", place, long.point_id(20), "--guest", "web1").succeeded()
    run("tag", place, "latest", "--guest", _EVIL, "--add", _EVIL_TAG).succeeded()
    run("verify", place, "--guest", "web1").succeeded()
    bad = next((place / "rotten").glob("000004-*/vda.fleece"))
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    run("verify", place, "--guest", "rotten")
    return place


@pytest.fixture(scope="module")
def file(store: Path) -> Path:
    """The page."""
    made = store.parent / "report.html"
    INTACT.run("report", store, "--html", made, "--max-age", "2d").succeeded()
    return made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def _guest(page: Page, name: str) -> str:
    """All that a page tells of a guest."""
    page.evaluate(_UNFOLD)
    return page.locator("article", has=page.get_by_role("heading", name=name)).inner_text()


def test_a_page_tells_what_the_store_knows(file: Path, page: Page) -> None:
    shown(page, file)
    rows = {row[0]: row for row in map(_cells, page.locator(".fleet tbody tr").all())}
    states = {name: row[1].strip() for name, row in rows.items()}
    evil = next(name for name in rows if "script" in name)
    assert states == {
        "web1": "good",
        "stale": "trouble",
        "rotten": "trouble",
        "parted": "trouble",  # a point of 2024
        evil: "good",
    }
    assert [rows[name][4] for name in ("web1", "stale", "rotten", "parted")] == [
        *("40", "9", "12", "1")
    ]
    told = page.locator(".troubles > li").all_inner_texts()
    assert [*sorted(line.split()[1].rstrip(":") for line in told)] == sorted(
        [f"{file.parent}/<b>\\xe2\\x80\\xaestore", "parted", "parted", "rotten", "rotten", "stale"]
    )
    assert "40 points: 39 incremental, 1 full, 40 verified, 1 pinned" in _guest(page, "web1")
    assert "1 delta failed the last verification" in _guest(page, "rotten")
    assert "1 incomplete point" in _guest(page, "parted")
    assert "the last good point is 11 d old" in _guest(page, "stale")
    assert "fleece run" not in _guest(page, "stale")  # no configuration has it
    assert page.locator("article", has_text="web1").locator("svg.map").count() == 1


def _cells(row: object) -> list[str]:
    return row.locator("th,td").all_inner_texts()  # type: ignore[attr-defined, no-any-return]


def test_what_guests_are_called_is_text_and_nothing_else(file: Path, page: Page) -> None:
    told = shown(page, file)
    assert told == [file.as_uri()]
    assert page.locator("script, img, link, iframe").count() == 0
    text = page.content()
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert r"<b>\xe2\x80\xaestore" in page.inner_text("h2 >> nth=-2")
    assert page.locator("article bdi", has_text=_EVIL).count() == 1
    page.evaluate(_UNFOLD)
    assert _EVIL_TAG in page.inner_text("body")
    # And were there a script, it would not run.
    page.evaluate("document.body.innerHTML += '<img src=x onerror=\"document.title=1\">'")
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_page_fits_its_width_and_everybody_can_read_it(
    width: int, scheme: str, file: Path, page: Page
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    shown(page, file)
    page.evaluate(_UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


def test_a_page_is_its_users_alone_and_whole_or_not_there(store: Path, tmp_path: Path) -> None:
    run, made = INTACT.run, tmp_path / "page.html"
    made.write_text("old")
    made.chmod(0o644)
    run("report", store, "--html", made).succeeded()
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    run("report", store, "--html", tmp_path).failed(7, "is not a regular file")
    run("report", store, "--html", tmp_path / "no/page").failed(7, "there is no such folder")
    run("report", store, "--html", made, "--config", "x").failed(2, "no effect with a STORE")
    run("report", "--html", made, "--config", tmp_path / "no.toml").failed(2, "No such file")


def test_a_store_that_cannot_be_read_keeps_no_other_from_being_told_of(
    store: Path, tmp_path: Path
) -> None:
    made = tmp_path / "page.html"
    INTACT.run("report", tmp_path / "gone", store, "--html", made).failed(
        5, "there is no store here"
    )
    text = made.read_text()
    assert "web1" in text
    assert "it cannot be read" in text


def test_a_configuration_says_who_is_missing_and_when_the_next_point_is_due(
    store: Path, tmp_path: Path, page: Page
) -> None:
    config, made = tmp_path / "fleece.toml", tmp_path / "page.html"
    config.write_text(
        f'[store.main]\nplace = "{store}"\n'
        + "".join(
            f'[[guest]]\nname = "{name}"\nsource = "image:vda=/x"\nstore = "main"\nevery = "1d"\n'
            for name in ("web1", "stale", "new")
        )
    )
    config.chmod(0o600)
    INTACT.run("report", "--html", made, "--config", config).succeeded()
    shown(page, made)
    due = {row[0]: row[-1] for row in map(_cells, page.locator(".fleet tbody tr").all())}
    assert due["rotten"] == "not in the configuration"
    assert due["web1"] > f"{datetime.now():%Y-%m-%d}"
    assert "there is no point of it" in _guest(page, "new")
    assert "the next one was due at" in _guest(page, "stale")
