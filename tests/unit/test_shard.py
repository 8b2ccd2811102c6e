"""Parts of all guests: each guest is in one, whoever asks and whenever."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleece
from fleece import events
from fleece.errors import Interrupted, UsageError
from fleece.guests import Shard
from fleece.store.init import init
from fleece.store.verified import last
from tests.engine.scene import INTACT
from tests.unit.copies import Site

SHARDS = 5
GUESTS = [f"g{number}" for number in range(25)]


@given(st.text(), st.integers(1, 1000))
def test_each_guest_is_in_exactly_one(guest: str, count: int) -> None:
    assert sum(Shard(number, count).has(guest) for number in range(1, count + 1)) == 1


def test_a_guest_stays_where_it_is() -> None:
    """In every version: work that was split is split alike by hosts that differ."""
    found = [
        next(n for n in range(1, 51) if Shard(n, 50).has(name)) for name in ("web1", "db", "ä")
    ]
    assert found == [43, 8, 39]


def test_ten_thousand_guests_are_spread() -> None:
    counts = Counter(
        next(n for n in range(1, 51) if Shard(n, 50).has(f"guest-{number}"))
        for number in range(10_000)
    )
    assert len(counts) == 50
    assert min(counts.values()) > 150
    assert max(counts.values()) < 250


@pytest.mark.parametrize(
    "text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/3/5", "1/9999999"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is none"):
        Shard.parse(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many guests, of two points each."""
    path = tmp_path_factory.mktemp("shards") / "store"
    store = init(path)
    for guest in GUESTS:
        site = Site(store, guest)
        site.back_up()
        site.back_up()
    return path


def test_workers_that_die_leave_nothing_out_and_do_nothing_twice(place: Path) -> None:
    """A worker is started again until it has ended by itself, as a scheduler of jobs does."""
    chance, checked, deaths = random.Random(24), 0, 0
    for number in range(1, SHARDS + 1):
        rules = fleece.ScrubRules(fleece.Duration.parse("1d"), guest=Shard(number, SHARDS))
        while True:
            cancel, worker = fleece.CancelToken(), _Worker(chance.randrange(1, 6))
            worker.dies = cancel.cancel
            catalogue = fleece.open_store(place).catalogue()
            try:
                assert fleece.scrub(catalogue, rules, worker.hear, cancel).errors == ()
                break
            except Interrupted:
                deaths += 1
            finally:
                checked += worker.checked
    assert deaths >= SHARDS, "no worker died"
    assert checked == 2 * len(GUESTS)
    catalogue = fleece.open_store(place).catalogue()
    noted = [last(catalogue.access, entry.key, datetime.now(UTC)) for entry in catalogue.entries]
    assert len(noted) == 2 * len(GUESTS)
    assert all(found is not None and found.sound for found in noted)


class _Worker:
    """Dies after some deltas."""

    def __init__(self, life: int) -> None:
        self.life, self.checked = life, 0
        self.dies: Callable[[], None] = lambda: None

    def hear(self, event: events.Event) -> None:
        self.checked += isinstance(event, events.DeltaChecked)
        if self.checked == self.life:
            self.dies()


def test_every_verb_keeps_to_its_shard(place: Path, tmp_path: Path) -> None:
    target = init(tmp_path / "copies")
    seen: list[str] = []
    for number in range(1, SHARDS + 1):
        shard = f"{number}/{SHARDS}"
        mine = [guest for guest in GUESTS if Shard.parse(shard).has(guest)]
        verified = INTACT.run("verify", place, "--shard", shard, "--json").succeeded()
        assert len(verified.result["points"]) == 2 * len(mine)
        INTACT.run("copy", place, tmp_path / "copies", "--shard", shard).succeeded()
        seen += mine
        assert {point.guest for point in target.catalogue().points} == set(seen)
        words = ("--keep-last", 1, "--shard", shard, "--json")
        ran = INTACT.run("prune", tmp_path / "copies", *words).succeeded()
        assert {row["guest"] for row in ran.named("pruned")} == set(mine)
        assert ran.result["removed"] == len(mine)
    assert sorted(seen) == sorted(GUESTS)


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "STORE", "--guest", "g1"),
        ("verify", "STORE", "latest"),
        ("prune", "STORE", "--keep-last", 1, "--guest", "g1"),
        ("copy", "STORE", "OTHER", "--guest", "g1"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_one_guest_has_no_shards(words: tuple[object, ...], place: Path, tmp_path: Path) -> None:
    init(tmp_path / "other")
    places = {"STORE": place, "OTHER": tmp_path / "other"}
    given_words = [places.get(str(word), word) for word in words]
    INTACT.run(*given_words, "--shard", "1/3").failed(fleece.ExitCode.USAGE)
