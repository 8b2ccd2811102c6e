"""FAT12, FAT16 and FAT32, by dissect.fat; what that gets wrong is put right here."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

from dissect.fat.fat import FATFS

from fleece.files.model import FileKind
from fleece.files.reader.tree import DamagedError, Node, Piece, read_runs, runs_of

_FIRST_CLUSTER = 2


class FatTree:
    """One FAT. It has no inodes: things are numbered as they are met.

    Args:
        volume: to read.
        size: of it in bytes.
    """

    def __init__(self, volume: BinaryIO, size: int) -> None:
        self._size = size
        self._fs = FATFS(volume)
        self._held: list[Any] = [self._fs.root]
        self.root = 0
        self.label: str = self._fs.volume_label.strip("\0")
        self.label = "" if self.label == "NO NAME" else self.label
        self.type = "fat"
        self.folds_case = True
        self.warnings: list[str] = []

    def node(self, number: int) -> Node:
        """What an entry is."""
        entry = self._entry(number)
        if entry.is_directory():
            return Node(number, FileKind.FOLDER, 0, mtime=_nanoseconds(entry))
        return Node(number, FileKind.FILE, int(entry.size), mtime=_nanoseconds(entry))

    def children(self, number: int) -> Iterator[tuple[str, int]]:
        """A folder's names."""
        folder = self._entry(number)
        if not folder.is_directory():
            raise DamagedError("no folder")
        self._place(folder)
        for child in folder.iterdir():
            if not child.is_volume_id() and child.name not in (".", ".."):
                self._held.append(child)
                yield _name(child), len(self._held) - 1

    def pieces(self, number: int) -> Iterator[Piece]:
        """A file's data."""
        file = self._entry(number)
        self._place(file)
        unit = self._fs.cluster_size
        runs = list(runs_of(file.dataruns(), unit))
        size = int(file.size)
        if sum(run.length for run in runs) < size:
            raise DamagedError(f"a file of {size} bytes has too few clusters")
        yield from read_runs(self._fs.data_stream, runs, size, self._size)

    def _entry(self, number: int) -> Any:
        if not 0 <= number < len(self._held):
            raise DamagedError(f"no such entry: {number}")
        return self._held[number]

    def _place(self, entry: Any) -> None:
        """Find an entry's clusters, which the library joins wrongly, and for ever in a loop."""
        if entry._runlist is not None or not entry.cluster:
            return
        most = self._size // self._fs.cluster_size
        clusters = list(itertools.islice(self._fs.fat.chain(entry.cluster), most + 1))
        if len(clusters) > most:
            raise DamagedError("a chain of clusters has no end")
        entry._runlist = [*_joined(cluster - _FIRST_CLUSTER for cluster in clusters)]


def _name(entry: Any) -> str:
    """Its long name, or the short one in the case that Windows NT has noted; the library has not.

    The two bits are those of Linux, fs/fat/fat.h: CASE_LOWER_BASE and CASE_LOWER_EXT.
    """
    if entry.ldirents:
        return str(entry.name)
    base, dot, ending = str(entry.short_name).partition(".")
    case = entry.dirent.DIR_NTRes
    return (base.lower() if case & 8 else base) + dot + (ending.lower() if case & 16 else ending)


def _joined(clusters: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Runs of (first, count)."""
    run: tuple[int, int] | None = None
    for cluster in clusters:
        if run is not None and cluster == sum(run):
            run = run[0], run[1] + 1
            continue
        if run is not None:
            yield run
        run = cluster, 1
    if run is not None:
        yield run


def _nanoseconds(entry: Any) -> int | None:
    """When it was written. FAT keeps the guest's local time; it is taken for UTC."""
    try:
        found: datetime.datetime = entry.mtime
        return int(found.replace(tzinfo=datetime.UTC).timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return None
