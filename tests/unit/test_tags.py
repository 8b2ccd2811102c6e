"""Tags of points: where they are, who changes them, what is found and kept by them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import fleece
from fleece import events
from fleece.delta import header as headers
from fleece.engine.upkeep.retention import KeepRules
from fleece.engine.upkeep.tags import set_tags
from fleece.errors import StoreError, UsageError
from fleece.keys import Derivation, Secret
from fleece.store.init import make
from fleece.store.marker import Marker, StoreWishes
from fleece.store.marks import MOST_TAGS, marks, noted_tags, tags_of
from fleece.store.names import TAGS
from fleece.store.open import open_store
from fleece.store.store import Store
from tests.contract.memory import MemoryBackend
from tests.engine.history import Guest
from tests.engine.scene import INTACT
from tests.unit.copies import Site
from tests.unit.kit import header

KEY = Secret(Derivation.KEY_FILE, b"k" * 32)


def _memory(*, encrypted: bool = False) -> Store:
    wishes = StoreWishes(encrypt=encrypted)
    secret = KEY if encrypted else None
    return make(MemoryBackend(), Marker.new(wishes, secret), secret)


def _tags(store: Store) -> list[tuple[str, ...]]:
    catalogue = store.catalogue()
    return [tags_of(catalogue, point) for point in catalogue.points]


def _note(store: Store) -> str:
    (key,) = [key for key in store.backend.listing().marks if key.endswith(TAGS)]
    return key


def test_a_header_says_the_tags_of_its_backup() -> None:
    plain = header(1 << 20)
    made = dataclasses.replace(plain, tags=("a", "b"))
    assert headers.parse(headers.pack(made), "here").tags == ("a", "b")
    assert b"tags" not in headers.pack(plain)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_tags_are_given_and_taken(encrypted: bool) -> None:
    store = _memory(encrypted=encrypted)
    site = Site(store)
    first, second = site.back_up(), site.back_up()
    assert set_tags(store, "latest", add=["upgrade", "数据"])[1] == ("upgrade", "数据")
    assert _tags(store) == [(), ("upgrade", "数据")]
    set_tags(store, second, add=["kept"], remove=["upgrade", "never"])
    assert _tags(store) == [(), ("kept", "数据")]
    set_tags(store, second, only=["z"])
    set_tags(store, first, add=["y"])
    assert _tags(store) == [("y",), ("z",)]
    raw = store.backend.get(next(key for key in store.backend.listing().marks), 9999)
    assert (b"tags" in raw) is not encrypted
    set_tags(store, second, remove=["z"])
    assert _tags(store) == [("y",), ()]
    assert site.judge(store) == [first, second]


@pytest.mark.parametrize("tag", ["", "a,b", " a", "a\n", "\x1b[2J", "x" * 101])
def test_what_cannot_be_a_tag_is_refused(tag: str) -> None:
    store = _memory()
    Site(store).back_up()
    with pytest.raises(UsageError):
        set_tags(store, "latest", add=[tag])
    with pytest.raises(UsageError):
        set_tags(store, "latest", only=[tag])
    assert store.backend.listing().marks == []


def test_too_many_or_none_are_refused() -> None:
    store = _memory()
    Site(store).back_up()
    with pytest.raises(UsageError, match="at most 64"):
        set_tags(store, "latest", add=map(str, range(MOST_TAGS + 1)))
    with pytest.raises(UsageError, match="no tag is named"):
        set_tags(store, "latest")
    with pytest.raises(UsageError, match="no effect"):
        set_tags(store, "latest", only=["a"], add=["b"])


def test_prune_keeps_what_is_tagged_and_can_be_for_tags_alone() -> None:
    store = _memory()
    site = Site(store)
    made = [site.back_up(time=f"2024-01-0{day}T00:00:00Z") for day in range(1, 6)]
    set_tags(store, made[0], add=["a", "b"])
    set_tags(store, made[1], add=["a"])
    set_tags(store, made[2], add=["c"])

    def kept(rules: KeepRules) -> dict[str, object]:
        found = fleece.prune(store, rules, dry_run=True)
        return {point.point: point.reasons for point in found.points if point.reasons}

    newest = {made[4]: ("newest",)}
    assert kept(KeepRules(tags=(("a", "b"),))) == {made[0]: ("tag",)} | newest
    assert kept(KeepRules(tags=(("b",), ("c",)))) == dict.fromkeys(made[:3:2], ("tag",)) | newest
    others = dict.fromkeys(made[2:], ("not of these tags",))
    assert kept(KeepRules(last=1, only=(("a",),))) == {made[1]: ("last", "newest")} | others
    fleece.prune(store, KeepRules(tags=(("a", "b"),)))
    assert [point.id for point in store.catalogue().points] == [made[0], made[4]]
    assert _tags(store) == [("a", "b"), ()]
    assert store.backend.listing().marks == [_note(store)]


def test_nothing_is_dropped_while_a_points_tags_cannot_be_told() -> None:
    for encrypted in (False, True):
        store = _memory(encrypted=encrypted)
        site = Site(store)
        first, _ = site.back_up(), site.back_up()
        set_tags(store, first, add=["a"])
        good = store.backend.get(_note(store), 9999)
        for bad in (b"", b"{}", good[:-1] if encrypted else b"[" * 9999):
            store.backend.put(_note(store), bad)
            with pytest.raises(StoreError, match="cannot be believed"):
                fleece.prune(store, KeepRules(last=1, tags=(("z",),)))
            said = marks(store.catalogue(), store.catalogue().points)
            assert [mark.trouble is None for mark in said] == [False, True]
        assert len(store.catalogue().points) == 2
        set_tags(store, first, only=["a"])
        assert _tags(store) == [("a",), ()]


def test_a_note_of_another_point_is_not_believed() -> None:
    store = _memory(encrypted=True)
    site = Site(store)
    first, second = site.back_up(), site.back_up()
    set_tags(store, first, add=["a"])
    stolen = store.backend.get(_note(store), 9999)
    set_tags(store, second, add=["b"])
    for key in store.backend.listing().marks:
        store.backend.put(key, stolen)
    with pytest.raises(StoreError, match="of something else"):
        _tags(store)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_copy_takes_tags_along(encrypted: bool) -> None:
    site = Site(_memory())
    first, second = site.back_up(), site.back_up()
    set_tags(site.store, first, add=["a"])
    target = _memory(encrypted=encrypted)
    assert len(fleece.copy(site.store, target).points) == 2
    assert _tags(target) == [("a",), ()]
    set_tags(target, first, only=["mine"])  # what the target says itself stays
    set_tags(site.store, first, add=["b"])
    set_tags(site.store, second, add=["b"])  # what came later, or was not copied, is
    assert fleece.copy(site.store, target).points == ()
    assert _tags(target) == [("mine",), ("b",)]


def test_a_copy_of_what_is_tagged_takes_what_that_builds_on() -> None:
    site = Site(_memory())
    made = [site.back_up() for _ in range(3)]
    set_tags(site.store, made[1], add=["a"])
    target = _memory()
    fleece.copy(site.store, target, fleece.CopyOptions(tags=(("a",),)))
    assert [point.id for point in target.catalogue().points] == made[:2]
    assert fleece.copy(site.store, target, fleece.CopyOptions(tags=(("b",),))).points == ()


def test_tags_that_cannot_be_copied_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a store that is append-only from here."""
    site = Site(_memory())
    site.back_up()
    set_tags(site.store, "latest", add=["a"])
    target, heard = _memory(), list[events.Event]()

    def put(key: str, data: bytes) -> None:
        raise StoreError("is append-only from here", where=key)

    monkeypatch.setattr(target.backend, "put", put)
    assert len(fleece.copy(site.store, target, listener=heard.append).points) == 1
    (warned,) = [event for event in heard if isinstance(event, events.Warned)]
    assert "the tags of point 0000000001 were not copied" in warned.what
    assert noted_tags(target.catalogue(), target.catalogue().points[0]) is None


def test_the_command_line(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "store")
    guest.full({"vda": 65536})
    guest.change()
    run = INTACT.run
    said = run("tag", guest.store, "latest", "--add", "a,b", "--add", "c").succeeded()
    assert said.out == "point 0000000002 has the tags a, b, c\n"
    run("pin", guest.store, "0000000001").succeeded()
    first, second, _ = run("list", guest.store).succeeded().out.splitlines()[1:]
    assert first.endswith("  pinned")
    assert second.endswith("  a, b, c")
    for words, points in (
        (("--tag", "a"), ["0000000002"]),
        (("--tag", "a,d"), []),
        (("--tag", "d", "--tag", "b,c"), ["0000000002"]),
    ):
        listed = run("list", guest.store, "--json", *words).succeeded().named("point")
        assert [point["point"] for point in listed] == points
        assert all(point["tags"] == ["a", "b", "c"] for point in listed)
    run("tag", guest.store, "latest", "--set", "a,,b").failed(2, "has an empty tag")
    (note,) = guest.store.glob("*/*/*.tags.json")
    assert json.loads(note.read_bytes())["tags"] == ["a", "b", "c"]
    assert open_store(guest.store).catalogue().foreign == ()
    note.write_text("x")
    run("list", guest.store, "--tag", "z").failed(5, "1 damaged file")
