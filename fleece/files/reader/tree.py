"""What the reader asks of a file system, and the reading of files by the places of their data."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Protocol

from fleece.files.model import FileKind
from fleece.files.wire import MOST_BLOB, Head

MOST_LINK = 4096
"""Bytes of the longest link there is on Linux (PATH_MAX)."""

_MOST_EXPANSION = 64
"""How many times larger than its volume a compressed file may be, and is still believed."""


class DamagedError(Exception):
    """The file system contradicts itself, or it is of a kind that nobody here understands."""


class UnsupportedError(Exception):
    """What is asked for is known, and cannot be had: encrypted, compressed, kept elsewhere."""


@dataclass(frozen=True)
class Node:
    """What a file system says of one thing in it; the fields of `fleece.files.model.FileEntry`."""

    id: int
    kind: FileKind
    size: int
    mode: int | None = None
    mtime: int | None = None
    uid: int | None = None
    gid: int | None = None
    target: str | None = None

    def to_wire(self, name: str) -> Head:
        """As a part of a message."""
        return asdict(self) | {"name": name}


@dataclass(frozen=True)
class Piece:
    """A part of a file that has data; what no piece holds reads as zeros."""

    offset: int
    data: bytes | memoryview


@dataclass(frozen=True)
class Run:
    """Where a part of a file is: `length` bytes from `place` of the volume; None: zeros."""

    offset: int
    place: int | None
    length: int


class Tree(Protocol):
    """A file system. Ids are its own numbers, valid for as long as it is open."""

    root: int
    label: str
    type: str
    warnings: list[str]
    folds_case: bool

    def node(self, number: int) -> Node:
        """What the thing of this number is."""

    def children(self, number: int) -> Iterator[tuple[str, int]]:
        """The names in a folder, without `.` and `..`, and their numbers."""

    def pieces(self, number: int) -> Iterator[Piece]:
        """The data of a file, in order; after them the file may go on with zeros."""


def kind_of(mode: int) -> FileKind:
    """What an inode is, by its mode."""
    kinds = {
        stat.S_IFREG: FileKind.FILE,
        stat.S_IFDIR: FileKind.FOLDER,
        stat.S_IFLNK: FileKind.LINK,
        stat.S_IFIFO: FileKind.PIPE,
        stat.S_IFSOCK: FileKind.SOCKET,
        stat.S_IFCHR: FileKind.CHARACTER,
        stat.S_IFBLK: FileKind.BLOCK,
    }
    return kinds.get(stat.S_IFMT(mode), FileKind.OTHER)


def runs_of(blocks: Iterable[tuple[int | None, int]], block_size: int) -> Iterator[Run]:
    """The library's run list, pairs of (block or None, number of blocks), as runs of bytes."""
    offset = 0
    for block, count in blocks:
        if count < 0:
            raise DamagedError("a file has a run of negative length")
        length = count * block_size
        yield Run(offset, None if block is None else block * block_size, length)
        offset += length


def read_runs(volume: BinaryIO, runs: Iterable[Run], size: int, most: int) -> Iterator[Piece]:
    """Read the data of a file.

    Args:
        volume: to read from.
        runs: in order.
        size: where the data of the file ends, whatever the runs say.
        most: bytes that it can be at most: the volume's size. More is a loop.

    Raises:
        DamagedError: the data is not all there, or is more than there can be.
    """
    done, total = 0, 0
    for run in runs:
        if run.offset < done:
            raise DamagedError("a file has two places for the same part of it")
        end = min(run.offset + run.length, size)
        done = max(done, end)
        if run.place is None or end <= run.offset:
            continue
        total += end - run.offset
        if total > most:
            raise DamagedError("a file has more data than its volume can hold")
        for offset in range(run.offset, end, MOST_BLOB):
            length = min(MOST_BLOB, end - offset)
            volume.seek(run.place + offset - run.offset)
            data = volume.read(length)
            if len(data) != length:
                raise DamagedError("a file lies outside of its volume")
            yield Piece(offset, data)


def read_stream(stream: Any, size: int, most: int) -> Iterator[Piece]:
    """Read what the library gives as a stream alone: small, or compressed.

    Raises:
        DamagedError: it ends too soon, or is larger than can be.
    """
    if size > most * _MOST_EXPANSION:
        raise DamagedError(f"a file of {size} bytes is larger than can be")
    offset = 0
    while offset < size:
        data = stream.read(min(MOST_BLOB, size - offset))
        if not data:
            raise DamagedError(f"a file of {size} bytes ends after {offset}")
        yield Piece(offset, data)
        offset += len(data)
