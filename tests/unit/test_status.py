"""Block status: whatever pieces a server answers in, its extents come out exact."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.errors import SourceError
from fleece.extents import Extents
from fleece.nbd.connection import MAX_STATUS, ChunkArray
from fleece.nbd.status import flagged

_GRAIN = 512
_NAMES = ("base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b")


class _Server:
    """Answers each context with as many descriptors, and as far past the request, as it likes."""

    def __init__(self, flags: Mapping[str, list[int]], draw: st.DataObject) -> None:
        self.flags = flags
        self.draw = draw
        self.asked: list[tuple[int, int]] = []

    def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
        self.asked.append((offset, length))
        return {name: self._reply(name, offset, length) for name in self.flags}

    def _reply(self, name: str, offset: int, length: int) -> ChunkArray:
        flags = self.flags[name]
        asked = -(-(offset + length) // _GRAIN)
        cell = offset // _GRAIN
        stop = self.draw.draw(st.integers(min(cell + 1, asked), len(flags)), "reply ends at")
        chunks: list[list[int]] = []
        place = offset
        while cell < stop:
            end = (cell + 1) * _GRAIN
            joins = chunks and chunks[-1][1] == flags[cell]
            if joins and not self.draw.draw(st.booleans(), "cut here"):
                chunks[-1][0] += end - place
            else:
                chunks.append([end - place, flags[cell]])
            place, cell = end, cell + 1
        return np.array(chunks, np.int64).reshape(-1, 2)


_disks = st.integers(1, 10).flatmap(
    lambda cells: st.dictionaries(
        st.sampled_from(_NAMES),
        st.lists(st.integers(0, 3), min_size=cells, max_size=cells),
        min_size=1,
    )
)


@given(_disks, st.sampled_from([1, 2, 3]), st.data())
def test_every_context_gets_exactly_its_own_flagged_ranges(
    flags: dict[str, list[int]], mask: int, data: st.DataObject
) -> None:
    size = len(next(iter(flags.values()))) * _GRAIN
    start = data.draw(st.integers(0, size), "start")
    end = data.draw(st.integers(start, size), "end")
    server = _Server(flags, data)
    found = flagged(server, start, end, dict.fromkeys(flags, mask))
    for name, cells in flags.items():
        ranges = [(n * _GRAIN, (n + 1) * _GRAIN) for n, flag in enumerate(cells) if flag & mask]
        assert found[name] == Extents.of(ranges).clip(start, end)
    assert all(start <= offset and offset + length <= end for offset, length in server.asked)


def test_a_context_that_answers_less_than_another_loses_nothing() -> None:
    replies = {
        0: {"long": [[8, 0]], "short": [[2, 1]]},
        2: {"long": [[1, 1]], "short": [[5, 0]]},
        7: {"long": [[1, 1]], "short": [[1, 1]]},
    }

    class Server:
        def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
            return {name: np.array(rows, np.int64) for name, rows in replies[offset].items()}

    found = flagged(Server(), 0, 8, {"long": 1, "short": 1})
    assert list(found["short"]) == [(0, 2), (7, 8)]
    assert list(found["long"]) == [], "what was said first of a range counts"


def test_an_extent_that_reaches_past_the_range_is_clipped() -> None:
    class Server:
        def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
            return {"a": np.array([[1 << 40, 1]], np.int64)}

    assert list(flagged(Server(), 3, 10, {"a": 1})["a"]) == [(3, 10)]


@pytest.mark.parametrize("chunks", [[], [[0, 1]], [[4, 0], [0, 1], [4, 0]]])
def test_an_empty_extent_is_an_error_and_not_an_endless_loop(chunks: list[list[int]]) -> None:
    class Server:
        def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
            return {"a": np.array(chunks, np.int64).reshape(-1, 2)}

    with pytest.raises(SourceError, match="empty extent for context a"):
        flagged(Server(), 0, 8, {"a": 1})


def test_a_context_that_is_not_answered_is_an_error_and_not_clean() -> None:
    class Server:
        def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
            return {"a": np.array([[length, 0]], np.int64)}

    with pytest.raises(SourceError, match="did not answer for context b"):
        flagged(Server(), 0, 8, {"a": 1, "b": 1})


def test_no_request_is_longer_than_libnbd_takes() -> None:
    asked: list[int] = []

    class Server:
        def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
            asked.append(length)
            return {"a": np.array([[length, 1]], np.int64)}

    size = 16 << 40
    assert flagged(Server(), 0, size, {"a": 1})["a"] == Extents.whole(size)
    assert max(asked) == MAX_STATUS < 1 << 32
    assert sum(asked) == size


def test_an_empty_range_asks_nothing() -> None:
    class Server:
        def block_status(self, offset: int, length: int) -> dict[str, ChunkArray]:
            raise AssertionError

    assert flagged(Server(), 5, 5, {"a": 1}) == {"a": Extents.empty()}


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=10).map(Extents.of),
    st.integers(1, 50),
)
def test_windows_cut_a_set_in_order_into_sets_of_bounded_length(ranges: Extents, most: int) -> None:
    parts = list(ranges.windows(most))
    pieces = [pair for part in parts for pair in part]
    assert all(0 < part.total <= most for part in parts)
    assert pieces == sorted(pieces)
    assert sum(part.total for part in parts) == ranges.total
    assert Extents.of(pieces) == ranges
