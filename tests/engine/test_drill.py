"""`fleece drill`: the newest point of some guests is restored, and what came of it is noted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

import fleece
from fleece.keys import Derivation, Secret
from fleece.store.drills import Drill, drills_of, note_drill
from fleece.store.init import init
from fleece.store.marker import HashChoice, StoreWishes
from fleece.store.open import open_store
from tests.engine.history import Guest
from tests.engine.scene import INTACT, MIB, Ran
from tests.engine.test_boot import bootable
from tests.rig.process import LIMIT

_NAMES = ("a", "b", "c")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three guests of two small disks."""
    place = tmp_path / "store"
    for name in _NAMES:
        guest = Guest(place, name)
        guest.holding({"vda": name.encode() * 65536, "vdb": bytes(4096)})
        guest.become(vda=b"x" * 65536)
    return place


def _drill(store: Path, *words: object) -> Ran:
    scratch = store.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    done = INTACT.run("drill", store, "--scratch", scratch, "--json", *words)
    assert not [*scratch.iterdir()]
    return done


def test_each_guest_has_its_turn_before_one_comes_again(store: Path) -> None:
    order = [
        told["guest"]
        for _ in range(4)
        for told in _drill(store, "--sample", 2).succeeded().named("drill")
    ]
    assert sorted(order[:2] + order[2:3]) == [*_NAMES]
    assert order == ["a", "b", "c", "a", "b", "c", "a", "b"]
    opened = open_store(store)
    point = opened.catalogue().of_guest("c")[-1]
    last = drills_of(opened.access, "c")[-1]
    assert (last.point, last.error, last.boot) == (point.id, None, False)
    assert last.roots == {name: entry.root for name, entry in point.disks.items()}
    assert opened.catalogue().foreign == ()


def test_a_drill_outlives_the_point_and_others_have_their_turn_after_one_that_failed(
    store: Path,
) -> None:
    bad = sorted(store.glob("a/000002-*/vda.fleece"))[0]
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    done = _drill(store, "--guest", "a", "--guest", "b").failed(5, "1 of 2 drills failed")
    assert [told["guest"] for told in done.named("drill")] == ["b"]
    assert done.named("problem")[0]["guest"] == "a"
    opened = open_store(store)
    assert drills_of(opened.access, "a")[-1].error is not None
    (told,) = (one for one in fleece.history(opened.catalogue()).guests if one.status.guest == "a")
    assert told.drills == drills_of(opened.access, "a")
    page = store.parent / "page.html"
    INTACT.run("report", store, "--html", page).succeeded()
    assert "the last drill failed" in page.read_text()
    _drill(store, "--guest", "nobody").failed(5, "there is no point of guest nobody")
    INTACT.run("prune", store, "--guest", "b", "--keep-last", 1, "--merge", "always").succeeded()
    assert len(drills_of(open_store(store).access, "b")) == 1


def test_a_configuration_says_how_many_and_where(store: Path, tmp_path: Path) -> None:
    config = tmp_path / "fleece.toml"
    scratch = tmp_path / "room"
    config.write_text(
        f'[store.main]\nplace = "{store}"\n[drill]\nsample = 3\nscratch = "{scratch}"\n'
    )
    config.chmod(0o600)
    run = INTACT.run
    run("drill", "--config", config).failed(2, "is not a folder")
    scratch.mkdir()
    assert run("drill", "--config", config, "--quiet").succeeded() == Ran(0, "", "")
    assert run("drill", "--config", config, "--json").succeeded().result["drilled"] == 3
    for words, said in (
        (("--sample", 0), "takes 1 or more"),
        (("--console-text", "x"), "no effect without --boot"),
        (("--guest", "a", "--sample", 1), "no effect with --guest"),
    ):
        run("drill", store, *words).failed(2, said)


def test_a_guest_is_booted_and_the_page_shows_its_screen(tmp_path: Path) -> None:
    place = tmp_path / "store"
    for name, disk in (("boots", bootable()), ("hangs", bytes(MIB))):
        Guest(place, name).holding({"vda": disk})
    before = {path: path.read_bytes() for path in place.rglob("*.fleece")}
    words = ("--boot", "--console-text", "BOOTED", "--guest")
    (told,) = _drill(place, *words, "boots", "--timeout", LIMIT).succeeded().named("drill")
    assert told["boot"] is True
    _drill(place, *words, "hangs", "--timeout", 1).failed(6, "on the console did not come")
    assert {path: path.read_bytes() for path in place.rglob("*.fleece")} == before
    for name in ("boots", "hangs"):
        (made,) = drills_of(open_store(place).access, name)
        assert (made.screenshot or b"").startswith(b"\x89PNG"), name
    page = tmp_path / "page.html"
    INTACT.run("report", place, "--html", page).succeeded()
    assert page.read_text().count('<img src="data:image/png;base64,iVBORw0KGgo') == 2


@pytest.mark.parametrize("encrypt", [False, True])
def test_with_a_key_a_note_that_somebody_else_made_is_none(encrypt: bool, tmp_path: Path) -> None:
    secret = Secret(Derivation.KEY_FILE, b"k" * 32)
    opened = init(tmp_path / "store", secret, StoreWishes(hash=HashChoice.BLAKE3, encrypt=encrypt))
    one = Drill(datetime.now(UTC), "00aa", True, 1.5, {"vda": "ff"}, None, b"\x89PNG")
    for _ in range(14):
        note_drill(opened.access, "web", one)
    known = drills_of(opened.access, "web")
    assert len(known) == 12
    assert [each.screenshot for each in known] == [None] * 11 + [b"\x89PNG"]
    (note,) = (path for path in (tmp_path / "store").iterdir() if path.name.startswith("drills-"))
    assert ("web" in note.name) is not encrypt
    raw = bytearray(note.read_bytes())
    raw[20] ^= 1
    note.write_bytes(raw)
    assert drills_of(opened.access, "web") == ()
    raw[20] ^= 1
    (note.parent / note.name.replace("web", "db")).write_bytes(raw)
    assert encrypt or drills_of(opened.access, "db") == ()
