"""One leaf tells whether a disk was shrunk and grown back: compared with all leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleece.engine.backup.shrunk import cut_at
from fleece.extents import Extents
from tests.unit.kit import LEAF, Change, History, OpenChain, applied, places, store_history

MOST = 40


@dataclass
class _Disk:
    """A disk in memory that counts what is read of it."""

    content: bytes
    where: str = "memory"
    read_bytes: int = 0

    @property
    def size(self) -> int:
        return len(self.content)

    @contextlib.contextmanager
    def reader(self) -> Iterator[_Disk]:
        yield self

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.content[offset : offset + length]

    def zero_extents(self, within: Extents) -> Extents:
        return Extents.empty()


def _within(size: int, one: Change | int) -> Change | int:
    if isinstance(one, Change):
        return Change(min(one.start, size), min(one.end, size), one.fill)
    return min(one, size)


def _what_qemu_does(disk: bytes, happens: Sequence[Change | int]) -> tuple[bytes, Extents]:
    """The disk after writes and cuts (each grown back at once), and what its bitmap says then."""
    size, dirty = len(disk), Extents.empty()
    for one in happens:
        if isinstance(one, Change):
            disk, more = applied(disk, [one])
            dirty = dirty.union(more)
        else:
            disk = disk[:one].ljust(size, b"\0")
            dirty = dirty.clip(0, -(-one // LEAF) * LEAF)
    return disk, dirty


_PLACES = places(MOST * LEAF)
_WRITES = st.builds(
    lambda a, b, fill: Change(min(a, b), max(a, b), fill),
    _PLACES,
    _PLACES,
    st.just(0) | st.integers(1, 255),
)


@settings(max_examples=300, deadline=None)
@given(
    size=places(MOST * LEAF).map(lambda size: max(size, 1)),
    fan_out=st.sampled_from([2, 16]),
    before=st.lists(_WRITES, max_size=3),
    happens=st.lists(_WRITES | _PLACES, max_size=5),
)
def test_it_tells_of_a_cut_if_any_unchanged_leaf_is_not_what_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    fan_out: int,
    before: list[Change],
    happens: list[Change | int],
) -> None:
    writes = tuple(Change(min(w.start, size), min(w.end, size), w.fill) for w in before)
    (stored,) = store_history(tmp_path_factory.mktemp("cut"), History(size, fan_out, (writes,)))
    now, dirty = _what_qemu_does(stored.disk, [_within(size, one) for one in happens])
    wrong = {
        at
        for start, end in Extents.whole(size).subtract(dirty)
        for at in range(start, end, LEAF)
        if now[at : at + LEAF] != stored.disk[at : at + LEAF]
    }
    disk = _Disk(now)
    with OpenChain([stored.path]) as chain:
        found = cut_at(chain, disk, dirty)
    assert (found in wrong) if wrong else (found is None)
    assert disk.read_bytes <= LEAF
