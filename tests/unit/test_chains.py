"""A store with several chains of one guest: deltas of several stores were imported into it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fleece.delta.header import PointRef
from fleece.engine.upkeep.prune import prune
from fleece.engine.upkeep.retention import KeepRules
from fleece.errors import StoreError
from fleece.extents import Extents
from fleece.store.catalogue import Catalogue, Entry
from fleece.store.damaged_line import line_of
from fleece.store.init import init
from fleece.store.store import Store
from fleece.tree import BlankDisk
from tests.unit.kit import LEAF, header, write_delta

JANUARY, JUNE = "aaaaaaaa", "bbbbbbbb"
CONTENT = b"x" * LEAF


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return init(tmp_path / "store")


def _fill(store: Store, chain: str, month: int, days: list[int]) -> None:
    """A point of a chain on each day, with sequences from 1 on, each built on the one before."""
    newest: Entry | None = None
    with store.locked("web"):
        for sequence, day in enumerate(days, 1):
            name = f"{chain}{sequence:02d}"
            point = PointRef(name, sequence, f"2025-{month:02d}-{day:02d}T00:00:00Z")
            head = header(LEAF, sequence, newest.as_parent() if newest else None)
            head = dataclasses.replace(head, chain=chain, point=point)
            partial = store.begin("web", name, sequence)
            base = BlankDisk(head.geometry)
            write_delta(partial.create("vda"), head, base, CONTENT, Extents.whole(LEAF))
            partial.commit()
            newest = store.catalogue().find(name).disk("vda")


def _ids(catalogue: Catalogue) -> list[str]:
    return [point.id for point in catalogue.points]


@pytest.fixture
def kept(store: Store) -> Store:
    """A long line of January, and the short one of a new store of June."""
    _fill(store, JANUARY, 1, [*range(1, 11)])
    _fill(store, JUNE, 6, [1, 2, 3])
    return store


def test_latest_is_of_the_chain_with_the_newest_point(kept: Store) -> None:
    assert kept.catalogue().find("latest").id == f"{JUNE}03"
    assert line_of(kept.catalogue(), "latest", "vda").header.point.id == f"{JUNE}03"


def test_chains_that_alternate_are_in_the_order_of_their_points(store: Store) -> None:
    _fill(store, JANUARY, 6, [1, 3, 5])
    _fill(store, JUNE, 6, [2, 4])
    names = [f"{JANUARY}01", f"{JUNE}01", f"{JANUARY}02", f"{JUNE}02", f"{JANUARY}03"]
    assert _ids(store.catalogue()) == names


def test_a_clock_that_went_back_changes_nothing_within_a_chain(store: Store) -> None:
    _fill(store, JANUARY, 6, [5, 3, 4])
    _fill(store, JUNE, 6, [2, 6])
    own = [f"{JANUARY}{number:02d}" for number in (1, 2, 3)]
    assert _ids(store.catalogue()) == [f"{JUNE}01", *own, f"{JUNE}02"]


def test_a_clock_that_was_ahead_once_says_nothing_of_the_points_since(store: Store) -> None:
    _fill(store, JANUARY, 6, [1, 28, 2])
    _fill(store, JUNE, 6, [3, 4])
    assert store.catalogue().find("latest").id == f"{JUNE}02"
    prune(store, KeepRules(last=2))
    assert _ids(store.catalogue()) == [f"{JANUARY}03", f"{JUNE}01", f"{JUNE}02"]


def test_prune_keeps_the_newest_of_all_and_the_end_of_each_chain(kept: Store) -> None:
    prune(kept, KeepRules(last=2))
    assert _ids(kept.catalogue()) == [f"{JANUARY}10", f"{JUNE}02", f"{JUNE}03"]


def test_a_backup_goes_on_with_the_stores_own_chain(kept: Store) -> None:
    assert kept.chain_of("web", kept.catalogue()) == JUNE
    own = kept.chain_id("web")
    _fill(kept, own, 3, [1])
    assert kept.chain_of("web", kept.catalogue()) == own
    assert kept.chain_of("other", kept.catalogue()) == kept.chain_id("other")


def test_a_damaged_file_of_another_chain_may_be_newer(store: Store) -> None:
    _fill(store, JANUARY, 1, [1])
    _fill(store, JUNE, 6, [1, 2])
    newest = Path(store.catalogue().find("latest").disk("vda").where)
    newest.write_bytes(newest.read_bytes()[:-20])
    with pytest.raises(StoreError, match="which point is the latest is unknown"):
        store.catalogue().find("latest")
    for path in newest.parent.parent.glob(f"*{JUNE}01/*"):
        path.unlink()
    with pytest.raises(StoreError, match="which point is the latest is unknown"):
        store.catalogue().find("latest")


def test_a_damaged_file_of_an_older_chain_hides_nothing(kept: Store) -> None:
    old = Path(kept.catalogue().find(f"{JANUARY}10").disk("vda").where)
    old.write_bytes(old.read_bytes()[:-20])
    assert kept.catalogue().find("latest").id == f"{JUNE}03"
