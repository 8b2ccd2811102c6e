"""Rows of a delta while it is written or checked, by key, in bounded memory.

A delta's rows and leaf hashes come in nearly any order and are wanted by place on the disk. What a
little memory does not hold waits in a temporary file that has no name, sorted into windows of the
disk.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fleece.delta.layout import INDEX_ROW
from fleece.delta.pages import IndexRows
from fleece.errors import StoreError
from fleece.extents import Int64Array
from fleece.tree import HashArray, NodeWindow, joined
from fleece.writing import taken

MEMORY = 16 * 1024 * 1024
"""Bytes that a spool keeps in memory."""

_WINDOW = 1 << 18
"""Leaves in a window: 16 GiB of disk, and a few MiB of memory when all have hashes."""

_BATCH = 4096

_Rows = npt.NDArray[np.void]


class SpoolError(StoreError):
    """The temporary file cannot be written or read. It says nothing of any delta."""


@contextlib.contextmanager
def _spool_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolError(
            f"no temporary file for a delta's rows ({error.strerror})",
            where=tempfile.tempdir or "$TMPDIR",
            hint="name a folder with more room by TMPDIR",
        ) from error


class Spool:
    """Structured rows, given back by ascending key.

    Args:
        row: their dtype.
        key: the field that is the key.
        span: keys in a window.
        memory: bytes to keep before the file is used.

    Every method raises SpoolError if the file cannot be used.
    """

    def __init__(self, row: np.dtype[np.void], key: str, span: int, memory: int = MEMORY) -> None:
        self._row = row
        self._key = key
        self._span = span
        self._memory = memory
        self._held: dict[int, list[_Rows]] = {}
        self._bytes = 0
        self._filed: dict[int, list[tuple[int, int]]] = {}
        self._file: int | None = None
        self._end = 0

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def add(self, rows: _Rows) -> None:
        """Take rows in, in any order."""
        window = rows[self._key].astype(np.int64) // self._span
        if len(rows) and window[0] == window[-1] and np.all(window == window[0]):
            self._held.setdefault(int(window[0]), []).append(rows)
        else:
            order = np.argsort(window, kind="stable")
            numbers, first = np.unique(window[order], return_index=True)
            for number, part in zip(
                numbers.tolist(), np.split(rows[order], first[1:]), strict=False
            ):
                self._held.setdefault(number, []).append(part)
        self._bytes += rows.nbytes
        if self._bytes > self._memory:
            self._file_all()

    def _file_all(self) -> None:
        with _spool_errors():
            if self._file is None:
                with tempfile.TemporaryFile(prefix="fleece-") as file:
                    self._file = os.dup(file.fileno())
            for number, parts in self._held.items():
                data = memoryview(np.concatenate(parts).tobytes())
                self._filed.setdefault(number, []).append((self._end, len(data)))
                while data:
                    done = taken(os.pwrite(self._file, data, self._end))
                    data, self._end = data[done:], self._end + done
        self._held.clear()
        self._bytes = 0

    def windows(self) -> Iterator[tuple[int, _Rows]]:
        """(number of the window, its rows by ascending key) for each window that has any."""
        for number in sorted(self._filed.keys() | self._held.keys()):
            parts = [self._read(*place) for place in self._filed.get(number, ())]
            rows = np.concatenate(parts + self._held.get(number, []))
            yield number, rows[np.argsort(rows[self._key], kind="stable")]

    def _read(self, position: int, length: int) -> _Rows:
        assert self._file is not None
        with _spool_errors():
            return np.frombuffer(os.pread(self._file, length, position), self._row)


class RowSpool:
    """Index rows, one by one.

    Args:
        leaf_size: bytes of disk under one leaf.
    """

    def __init__(self, leaf_size: int, memory: int = MEMORY) -> None:
        self._spool = Spool(INDEX_ROW, "offset", _WINDOW * leaf_size, memory)
        self._new: list[tuple[int, int, int, int, int]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, offset: int, length: int, position: int, frame_length: int, kind: int) -> None:
        """Take a row in, its fields as in `layout.INDEX_ROW`."""
        self._new.append((offset, length, position, frame_length, kind))
        self._count += 1
        if len(self._new) == _BATCH:
            self._fold()

    def _fold(self) -> None:
        if self._new:
            self._spool.add(np.array(self._new, INDEX_ROW))
            self._new.clear()

    def parts(self) -> Iterator[IndexRows]:
        """All rows by ascending offset, some at a time."""
        self._fold()
        for _, rows in self._spool.windows():
            yield rows


class HashSpool:
    """Hashes of the nodes of one level, or of leaves: a `fleece.tree.NodeSpool`.

    Args:
        size: of a hash in bytes.
    """

    span = _WINDOW

    def __init__(self, size: int, memory: int = MEMORY) -> None:
        self._row = np.dtype([("number", "<i8"), ("hash", np.uint8, (size,))])
        self._size = size
        self._spool = Spool(self._row, "number", self.span, memory)
        self._new: list[tuple[int, bytes]] = []

    def add_run(self, first: int, hashes: bytes) -> None:
        """Take in the joined hashes of consecutive leaves, the first of them given by number."""
        self._new.append((first, hashes))
        if len(self._new) == _BATCH:
            self._fold()

    def _fold(self) -> None:
        if self._new:
            self.add(*joined(self._new, self._size))
            self._new.clear()

    def add(self, numbers: Int64Array, hashes: HashArray) -> None:
        """Take in hashes by the numbers of their nodes."""
        rows = np.empty(len(numbers), self._row)
        rows["number"], rows["hash"] = numbers, hashes
        self._spool.add(rows)

    def windows(self) -> Iterator[NodeWindow]:
        """All of them by ascending number, a window at a time."""
        self._fold()
        for window, rows in self._spool.windows():
            yield window, rows["number"].copy(), rows["hash"].copy()
