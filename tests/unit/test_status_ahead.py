"""The dirty bitmap is asked with many requests in flight: exact, whatever is answered, and when."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleece.errors import SourceError
from fleece.extents import Extents
from fleece.nbd.connection import BASE_ALLOCATION, MAX_STATUS, STATE_ZERO, ChunkArray, Connection
from fleece.nbd.server import greets
from fleece.nbd.status import IN_FLIGHT, flagged, flagged_ahead
from fleece.nbd.uri import unix_uri
from tests.unit.kit import places

GIB = 1 << 30
_QEMUS_MOST = 131072
"""Extents of a context in one reply of QEMU."""


class _Bitmap:
    """Answers as QEMU does: at most so many extents, in any order, not past the request.

    Args:
        dirty: the whole of it.
        most: extents in a reply.
        draw: chooses which request is answered next; None: the last one sent.
    """

    def __init__(self, dirty: Extents, most: int, draw: st.DataObject | None = None) -> None:
        self._dirty = dirty
        self._most = most
        self._draw = draw
        self._asked: list[tuple[int, int]] = []
        self.sent: list[tuple[int, int]] = []
        self.most_flying = 0

    def ask_status(self, offset: int, length: int) -> None:
        self._asked.append((offset, length))
        self.sent.append((offset, length))
        self.most_flying = max(self.most_flying, len(self._asked))

    def status_answer(self) -> tuple[int, dict[str, ChunkArray]]:
        last = len(self._asked) - 1
        number = last if self._draw is None else self._draw.draw(st.integers(0, last), "answers")
        offset, length = self._asked.pop(number)
        return offset, {"dirty": self._chunks(offset, offset + length)}

    def _chunks(self, start: int, end: int) -> ChunkArray:
        mine = self._dirty.clip(start, end)
        bounds = np.unique(np.concatenate(([start, end], mine.start, mine.end)))
        flags = mine.contains(bounds[:-1], bounds[1:])
        chunks = np.stack((np.diff(bounds), flags.astype(np.int64)), axis=1)
        return chunks[: self._most]


_places = places(20 * MAX_STATUS, MAX_STATUS)
_dirty = st.lists(st.tuples(_places, _places), max_size=8).map(Extents.of)


@given(_dirty, _dirty, st.integers(1, 3), st.data())
def test_all_that_is_dirty_is_found_whatever_answer_comes_first_or_is_cut(
    dirty: Extents, within: Extents, most: int, data: st.DataObject
) -> None:
    server = _Bitmap(dirty, most, data)
    assert flagged_ahead(server, within, "dirty", 1) == dirty.intersect(within)
    asked = Extents.of((offset, offset + length) for offset, length in server.sent)
    assert asked == within, "what nobody asked for is asked, or something is not"
    assert all(0 < length <= MAX_STATUS for _, length in server.sent)


def test_so_many_requests_fly_and_no_more() -> None:
    server = _Bitmap(Extents.of([(5, 7)]), 3)
    whole = Extents.whole(100 * MAX_STATUS)
    assert list(flagged_ahead(server, whole, "dirty", 1)) == [(5, 7)]
    assert server.most_flying == IN_FLIGHT
    small = _Bitmap(Extents.of([(5, 7)]), 3)
    assert list(flagged_ahead(small, Extents.whole(9), "dirty", 1)) == [(5, 7)]
    assert small.sent == [(0, 9)]


def test_replies_that_are_cut_at_131072_extents_lose_nothing() -> None:
    starts = np.arange(0, 300_000, dtype=np.int64) * 1024
    dirty = Extents.normal(starts, starts + 512)
    server = _Bitmap(dirty, _QEMUS_MOST)
    assert flagged_ahead(server, Extents.whole(MAX_STATUS), "dirty", 1) == dirty
    assert len(server.sent) == 5, "the rest of a piece is asked from where its reply ended"


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "empty extent for context dirty"),
        ([[0, 1]], "empty extent for context dirty"),
        ([[MAX_STATUS, 0], [0, 1]], "empty extent for context dirty"),
        (None, "did not answer for context dirty"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_an_error(
    chunks: list[list[int]] | None, message: str
) -> None:
    class Server(_Bitmap):
        def status_answer(self) -> tuple[int, dict[str, ChunkArray]]:
            offset, replies = super().status_answer()
            if offset == 3 * MAX_STATUS:
                if chunks is None:
                    return offset, {}
                return offset, {"dirty": np.array(chunks, np.int64).reshape(-1, 2)}
            return offset, replies

    server = Server(Extents.empty(), 1)
    with pytest.raises(SourceError, match=message):
        flagged_ahead(server, Extents.whole(40 * MAX_STATUS), "dirty", 1)


# ---- real servers -------------------------------------------------------------------------------

_SIZE = 64 * GIB
_ZEROS = """
gib=$((1024 * 1024 * 1024))
end=$(( ($4 / gib + 1) * gib ))
[ $end -le $(($4 + $3)) ] || end=$(($4 + $3))
[ $(($4 / gib % 3)) = 0 ] && type=hole,zero || type=
"""
"""Of every third GiB it says that it is zero; a reply ends where the GiB does."""


@contextmanager
def _served(folder: Path, extents: str) -> Iterator[str]:
    """Serve a disk whose block status a shell script tells (nbdkit-eval-plugin)."""
    place = folder / "nbd.sock"
    words = ["nbdkit", "--foreground", f"--unix={place}", "eval", f"get_size=echo {_SIZE}"]
    words += ["can_extents=exit 0", "pread=exit 1", f"extents={extents}"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            while not place.exists() or not greets(place):
                assert process.poll() is None
                time.sleep(0.01)
            yield unix_uri(str(place))
        finally:
            process.terminate()


def test_a_server_that_answers_less_than_it_is_asked_is_asked_again(tmp_path: Path) -> None:
    script = _ZEROS + "echo $4 $((end - $4)) $type"
    with (
        _served(tmp_path, script) as uri,
        Connection(uri, (BASE_ALLOCATION,)) as connection,
    ):
        found = flagged_ahead(connection, Extents.whole(_SIZE), BASE_ALLOCATION, STATE_ZERO)
        each = flagged(connection, 0, _SIZE, {BASE_ALLOCATION: STATE_ZERO})
    assert found == each[BASE_ALLOCATION]
    assert found == Extents.of((n * GIB, (n + 1) * GIB) for n in range(0, 64, 3))


def test_one_request_of_many_that_fails_fails_the_listing(tmp_path: Path) -> None:
    script = f"[ $4 -lt {_SIZE // 2} ] || {{ echo EIO broken >&2; exit 1; }}" + _ZEROS
    script += "echo $4 $((end - $4)) $type"
    with (
        _served(tmp_path, script) as uri,
        Connection(uri, (BASE_ALLOCATION,)) as connection,
        pytest.raises(SourceError, match="EIO"),
    ):
        flagged_ahead(connection, Extents.whole(_SIZE), BASE_ALLOCATION, STATE_ZERO)
