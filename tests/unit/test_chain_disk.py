"""The disk of a chain, read at random; the map of a part; which frames are decoded for it."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.cache import Cache
from fleece.delta.chain import Chain
from fleece.disk import chain as chain_module
from fleece.disk.chain import ChainDisk
from fleece.errors import DeltaError, UsageError
from fleece.extents import Extents
from tests.unit.kit import (
    LEAF,
    Change,
    History,
    OpenChain,
    Stored,
    histories,
    places,
    records_of,
    store_history,
)


def _two(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """Two places on a disk."""
    return st.tuples(places(size), places(size))


def paths(stored: list[Stored]) -> list[Path]:
    """Newest first."""
    return [item.path for item in reversed(stored)]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that reads cross them."""
    monkeypatch.setattr(chain_module, "WINDOW", 3 * LEAF)
    monkeypatch.setattr(chain_module, "_STEP", 2 * LEAF)


_HISTORY = History(
    12 * LEAF + 100,
    2,
    (
        (Change(0, 8 * LEAF, 1), Change(12 * LEAF, 12 * LEAF + 100, 9)),
        (Change(LEAF, 2 * LEAF, 0), Change(4 * LEAF, 5 * LEAF, 2)),
        (Change(5 * LEAF, 6 * LEAF, 3),),
    ),
)


@pytest.fixture
def stored(tmp_path: Path) -> list[Stored]:
    return store_history(tmp_path, _HISTORY, longest=1)


@settings(max_examples=60, deadline=None)
@given(history=histories(), data=st.data())
def test_any_range_of_any_point_reads_as_the_disk_was(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    stored = store_history(tmp_path_factory.mktemp("history"), history)
    for number in range(len(stored)):
        with OpenChain(paths(stored[: number + 1])) as chain:
            disk = ChainDisk(chain)
            start, end = sorted(data.draw(_two(history.size)))
            with disk.reader() as reader:
                assert reader.read(start, end - start) == stored[number].disk[start:end]
            assert disk.read(0, history.size) == stored[number].disk


@settings(max_examples=60, deadline=None)
@given(history=histories(), data=st.data())
def test_the_map_of_a_part_is_that_part_of_the_whole_map(
    tmp_path_factory: pytest.TempPathFactory, history: History, data: st.DataObject
) -> None:
    stored = store_history(tmp_path_factory.mktemp("history"), history)
    start, end = sorted(data.draw(_two(history.size)))
    with OpenChain(paths(stored)) as chain:
        whole, part = chain.map(), chain.map(start, end)
        for zero in (False, True):
            assert part.extents(zero) == whole.extents(zero).clip(start, end)
        picked = (whole.end > start) & (whole.start < end) & (start < end)
        assert part.owner.tolist() == whole.owner[picked].tolist()
        assert part.records.tolist() == whole.records[picked].tolist()


@settings(max_examples=60, deadline=None)
@given(history=histories())
def test_what_is_said_to_be_zero_is_exactly_what_the_map_shows(
    tmp_path_factory: pytest.TempPathFactory, history: History
) -> None:
    stored = store_history(tmp_path_factory.mktemp("history"), history)
    with OpenChain(paths(stored)) as chain:
        disk = ChainDisk(chain)
        zeros = chain.map().extents(zero=True)
        assert disk.zero_extents(Extents.whole(disk.size)) == zeros
        told = [*disk.allocation(0, disk.size)]
        assert Extents.of([(a, b) for a, b, zero in told if zero]) == zeros
        assert [a for a, _, _ in told[1:]] == [b for _, b, _ in told[:-1]]
        assert all(one[2] != two[2] for one, two in itertools.pairwise(told))


def test_zero_extents_keep_within_what_was_asked(stored: list[Stored]) -> None:
    asked = Extents.of([(LEAF + 5, 9 * LEAF + 7), (10 * LEAF, 10 * LEAF + 1)])
    with OpenChain(paths(stored)) as chain:
        found = ChainDisk(chain).zero_extents(asked)
        assert found == chain.map().extents(zero=True).intersect(asked)
        assert found.total > 0


def test_a_small_read_decodes_one_frame_and_a_second_one_none(stored: list[Stored]) -> None:
    with OpenChain(paths(stored)) as chain:
        disk = ChainDisk(chain)
        for count, leaf in enumerate((0, 4, 5, 7), 1):
            disk.read(leaf * LEAF + 10, 100)
            disk.read(leaf * LEAF + 500, 100)
            assert disk.decoded == count


def test_zeros_decode_nothing(stored: list[Stored]) -> None:
    with OpenChain(paths(stored)) as chain:
        disk = ChainDisk(chain)
        assert disk.read(LEAF, LEAF) == bytes(LEAF)
        assert disk.read(9 * LEAF, LEAF) == bytes(LEAF)
        assert disk.decoded == 0


def test_many_threads_read_what_one_would_and_decode_each_frame_once(
    stored: list[Stored],
) -> None:
    disk_bytes = stored[-1].disk
    with OpenChain(paths(stored)) as chain:
        disk = ChainDisk(chain)
        data_records = int((~chain.map().zero).sum())

        def read(number: int) -> bool:
            start = number * 997 % (disk.size - LEAF)
            return bytes(disk.read(start, LEAF)) == disk_bytes[start : start + LEAF]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(400)))
        assert disk.decoded == data_records


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (12 * LEAF, LEAF), (1 << 40, 1)])
def test_a_read_outside_the_disk_is_refused(stored: list[Stored], offset: int, length: int) -> None:
    with OpenChain(paths(stored)) as chain, pytest.raises(UsageError, match="not within"):
        ChainDisk(chain).read(offset, length)


def test_damage_is_an_error_of_the_reads_that_touch_it_and_of_no_others(
    stored: list[Stored],
) -> None:
    """Leaf 5 is in the newest delta: its frame's last byte is changed."""
    path = stored[-1].path
    (only,) = records_of(path)
    raw = path.read_bytes()
    at = raw.index(only) + len(only) - 1
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    with OpenChain(paths(stored)) as chain:
        disk = ChainDisk(chain)
        for _ in range(2):
            with pytest.raises(DeltaError, match=f"does not match its hash .*byte {5 * LEAF}"):
                disk.read(5 * LEAF + 100, 10)
            assert disk.read(4 * LEAF, LEAF) == stored[-1].disk[4 * LEAF : 5 * LEAF]


# ---- the cache -------------------------------------------------------------------------------


def test_a_value_is_made_once_by_whoever_comes_first() -> None:
    cache: Cache[int] = Cache(2)
    gate = threading.Barrier(2)
    made = []

    def make() -> int:
        made.append(1)
        return len(made)

    def ask(_: int) -> int:
        gate.wait()
        return cache.get("key", make)

    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(ask, range(2))] == [1, 1]


def test_the_value_that_was_not_asked_for_longest_goes_first() -> None:
    cache: Cache[str] = Cache(2)
    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, lambda key=key: key)  # type: ignore[misc]
    assert cache.made == 4


def test_values_go_by_what_they_weigh() -> None:
    """The oldest first, and never the one that was asked for last."""
    cache: Cache[bytes] = Cache(10, len)
    for key, size in (("a", 4), ("b", 6), ("a", 4), ("c", 3), ("a", 4), ("b", 6), ("d", 99)):
        assert len(cache.get(key, lambda size=size: bytes(size))) == size  # type: ignore[misc]
    assert cache.made == 5, "c made b go, b made c go, and d all"
    cache.get("d", lambda: bytes(99))
    assert cache.made == 5
    cache.get("a", lambda: bytes(4))
    assert cache.made == 6


def test_a_chains_pages_go_with_it(stored: list[Stored]) -> None:
    """At once, and not when Python looks for cycles: a verification opens very many chains."""
    gc.disable()
    try:
        with OpenChain(paths(stored)) as chain:
            chain.leaf_hashes(0, 1)
            pages, reader = weakref.ref(chain.deltas[0].cache), weakref.ref(chain.deltas[0])
            assert all(delta.cache is chain.deltas[0].cache for delta in chain.deltas)
            assert chain.deltas[0].cache.made > 0
        del chain
        assert reader() is None
        assert pages() is None
    finally:
        gc.enable()


def test_an_error_is_not_kept() -> None:
    cache: Cache[int] = Cache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: 1 // 0)
    assert cache.get("key", lambda: 5) == 5


def test_a_disk_of_no_bytes_reads_as_nothing(tmp_path: Path) -> None:
    stored = store_history(tmp_path, History(0, 2, ((),)))
    with OpenChain(paths(stored)) as chain:
        disk = ChainDisk(chain)
        assert disk.read(0, 0) == b""
        assert [*disk.allocation(0, 0)] == []
        assert disk.zero_extents(Extents.whole(0)) == Extents.empty()
        assert isinstance(chain, Chain)
