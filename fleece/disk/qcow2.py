"""Write a qcow2 image whose map is known beforehand, and read it back by its own tables.

A qcow2 image (QEMU, docs/interop/qcow2.txt) is clusters: a header, a table and blocks of reference
counts, a table of tables (L1), tables (L2) that say where each cluster of the disk lies, and data.
When all that will hold data is known, so is the length of each of these, and where every cluster
goes: the data in the order of the disk, behind all tables. So any number of threads write to their
own places, nothing is allocated, and nothing is written twice. ::

    cluster  0        1 ...            ...             ...          ...       ...
             header | refcount table | refcount blocks | L1 table | L2 tables | data

A cluster of the disk that holds no data has no cluster in the file: it reads as zeros, or as what
the backing file has there; over a backing file, zeros are marked in the L2 table.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleece.disk.base import Reader
from fleece.disk.raw import RawDisk
from fleece.errors import FleeceError
from fleece.extents import Extents, Int64Array

CLUSTER = 65536
"""Bytes of a cluster; QEMU's default, and the unit of hashing, so that no cluster is half data."""

_MAGIC = b"QFI\xfb"
_VERSION = 3
_CLUSTER_BITS = 16
_REFCOUNT_ORDER = 4
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_LENGTH = 104
_BACKING_FORMAT = 0xE2792ACA
_PER_TABLE = CLUSTER // 8
"""Entries of an L2 table: 8 bytes each."""
_PER_BLOCK = CLUSTER // 2
"""Counts of a refcount block: 16 bits each."""
_COPIED = np.uint64(1 << 63)
_ZERO = np.uint64(1)
_OFFSET = np.uint64(0x00FFFFFFFFFFFE00)
_STEP = 256
"""Tables that are made or read at a time: 16 MiB."""

_Entries = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Backing:
    """The image that a new one is an overlay of.

    Attributes:
        name: as the new image names it: a path, relative to its own folder.
        format: as qemu-img names it.
    """

    name: str
    format: str


@dataclass(frozen=True)
class Layout:
    """Where everything in an image goes.

    Attributes:
        size: of the disk, in bytes.
        data: the disk's clusters that have one in the file, as ranges of cluster numbers.
        ragged: those of them of which not all will be written, likewise.
        zeros: those that are marked as zeros, likewise.
        tables: int64[n], the numbers of the L2 tables that there are, ascending.
        refcount_table, refcount_blocks, l1, l2, first_data: cluster of the file where each begins.
        end: clusters in the file.
    """

    size: int
    data: Extents
    ragged: Extents
    zeros: Extents
    tables: Int64Array
    refcount_table: int
    refcount_blocks: int
    l1: int
    l2: int
    first_data: int
    end: int

    @staticmethod
    def of(size: int, data: Extents, zeros: Extents | None = None) -> Layout:
        """Plan an image.

        Args:
            size: of the disk in bytes, a multiple of 512.
            data: all that will be written, in bytes of disk; a cluster that it touches is data.
            zeros: over a backing file, what reads as zeros; whole clusters, but for the last.

        Raises:
            ValueError: no qcow2 image has this size.
        """
        if size % 512:
            raise ValueError(f"a qcow2 image cannot have {size} bytes: no multiple of 512")
        held = _clusters(data)
        inner = data.align_in(CLUSTER, size)
        marked = _clusters(zeros or Extents.empty()).subtract(held)
        tables = _tables(held.union(marked))
        l1 = _ceil(max(1, _ceil(_ceil(size, CLUSTER), _PER_TABLE)) * 8, CLUSTER)
        known = 1 + l1 + len(tables) + held.total
        blocks = table = 0
        while (wanted := _counts(known + blocks + table)) != (blocks, table):
            blocks, table = wanted
        first = 1 + table + blocks
        return Layout(
            size=size,
            data=held,
            ragged=held.subtract(_clusters(inner)),
            zeros=marked,
            tables=tables,
            refcount_table=1,
            refcount_blocks=1 + table,
            l1=first,
            l2=first + l1,
            first_data=first + l1 + len(tables),
            end=first + l1 + len(tables) + held.total,
        )

    @property
    def length(self) -> int:
        """Of the file, in bytes."""
        return self.end * CLUSTER

    @property
    def ranks(self) -> Int64Array:
        """int64[n]: for each range of `data`, how many data clusters come before it."""
        return np.cumsum(self.data.length) - self.data.length


class Qcow2Image:
    """A new qcow2 image in a file or on a block device. `fleece.disk.base.WritableDisk`.

    Zeros are never written: what is not in `layout.data` has no place. `flush` writes the tables;
    before, the image reads as nothing. What is read is found by the tables as the file has them.

    Args:
        path: of the file, which is there and empty, or of the device.
        layout: of the image.
        failure: the family of errors about it.
        backing: what it is an overlay of; then it cannot be read back here. None: nothing.
        name: of the image in messages; None: its path.

    Raises:
        FleeceError: of that family; it cannot be opened, or the device is too small.
    """

    def __init__(
        self,
        path: str,
        layout: Layout,
        failure: type[FleeceError],
        backing: Backing | None = None,
        name: str | None = None,
    ) -> None:
        self.where = name or path
        self.size = layout.size
        self._layout = layout
        self._ranks = layout.ranks
        self._failure = failure
        self._backing = backing
        self._file = RawDisk(path, failure, writable=True)
        self._file.where = self.where
        with self._closed_on_error():
            self._file.make_room(layout.length)
            if not self._file.regular:
                self._blank()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._file.close()
            raise

    def _blank(self) -> None:
        """Let nothing of a device's old content tell what it was, or show through."""
        self._file.zero(0, CLUSTER)
        for start, end in self._layout.ragged:
            place, _ = self._place(start)
            self._file.zero(place, (end - start) * CLUSTER)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @contextlib.contextmanager
    def writer(self) -> Iterator[Qcow2Image]:
        """Any thread may write through the one file."""
        yield self

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`, which the layout has a place for.

        Raises:
            ValueError: it has none.
        """
        view = memoryview(data)
        while len(view):
            cluster, inside = divmod(offset, CLUSTER)
            place, together = self._place(cluster)
            count = min(len(view), together * CLUSTER - inside)
            self._file.write(place + inside, view[:count])
            view, offset = view[count:], offset + count

    def _place(self, cluster: int) -> tuple[int, int]:
        """Where a cluster of the disk goes, and how many lie together from it on."""
        held = self._layout.data
        row = int(np.searchsorted(held.start, cluster, side="right")) - 1
        if row < 0 or cluster >= int(held.end[row]):
            raise ValueError(f"cluster {cluster} of the disk has no place in the image")
        rank = int(self._ranks[row]) + cluster - int(held.start[row])
        return (self._layout.first_data + rank) * CLUSTER, int(held.end[row]) - cluster

    def zero(self, offset: int, length: int) -> None:
        """Nothing: what is zeros has no data, and is marked if there is a backing file."""

    def flush(self) -> None:
        """Write the tables, and make all of the image durable.

        The header comes last, behind a flush: at no moment does a power cut leave tables that
        something believes before they are whole.
        """
        self._write_counts()
        self._write_tables()
        self._file.flush()
        self._file.write(0, self._header())
        self._file.flush()

    def _header(self) -> bytes:
        plan = self._layout
        extension, name = b"", b""
        if self._backing is not None:
            text = self._backing.format.encode()
            extension = struct.pack(">II", _BACKING_FORMAT, len(text))
            extension += text.ljust(_ceil(len(text), 8) * 8, b"\0")
            name = os.fsencode(self._backing.name)
        extension += bytes(8)
        if len(name) > 1023:
            raise self._failure("the name of its backing file is too long", where=self.where)
        entries = max(1, _ceil(_ceil(plan.size, CLUSTER), _PER_TABLE))
        return (
            _HEADER.pack(
                _MAGIC,
                _VERSION,
                _HEADER_LENGTH + len(extension) if name else 0,
                len(name),
                _CLUSTER_BITS,
                plan.size,
                0,
                entries,
                plan.l1 * CLUSTER,
                plan.refcount_table * CLUSTER,
                plan.refcount_blocks - plan.refcount_table,
                0,
                0,
                0,
                0,
                0,
                _REFCOUNT_ORDER,
                _HEADER_LENGTH,
            )
            + extension
            + name
        )

    def _write_counts(self) -> None:
        """Every cluster of the file is used once."""
        plan = self._layout
        blocks = plan.l1 - plan.refcount_blocks
        table = (plan.refcount_blocks + np.arange(blocks, dtype=np.uint64)) * np.uint64(CLUSTER)
        self._put(plan.refcount_table, table.astype(">u8").tobytes())
        for first in range(0, blocks, _STEP):
            count = min(_STEP, blocks - first)
            used = min(plan.end - first * _PER_BLOCK, count * _PER_BLOCK)
            ones = np.zeros(count * _PER_BLOCK, ">u2")
            ones[:used] = 1
            self._put(plan.refcount_blocks + first, ones.tobytes())

    def _write_tables(self) -> None:
        plan = self._layout
        l1 = np.zeros((plan.l2 - plan.l1) * _PER_TABLE, np.uint64)
        places = (plan.l2 + np.arange(len(plan.tables), dtype=np.uint64)) * np.uint64(CLUSTER)
        l1[plan.tables] = places | _COPIED
        self._put(plan.l1, l1.astype(">u8").tobytes())
        for first in range(0, len(plan.tables), _STEP):
            numbers = plan.tables[first : first + _STEP]
            entries = np.zeros((len(numbers), _PER_TABLE), np.uint64)
            for row, number in enumerate(numbers.tolist()):
                self._fill(entries[row], number * _PER_TABLE)
            self._put(plan.l2 + first, entries.astype(">u8").tobytes())

    def _fill(self, entries: _Entries, first: int) -> None:
        """The entries of one L2 table, of the disk's clusters from `first` on."""
        plan, end = self._layout, first + _PER_TABLE
        for low, high in plan.zeros.clip(first, end):
            entries[low - first : high - first] = _ZERO
        row = int(np.searchsorted(plan.data.end, first, side="right"))
        for low, high in plan.data.clip(first, end):
            rank = int(self._ranks[row]) + low - int(plan.data.start[row])
            at = plan.first_data + rank + np.arange(high - low, dtype=np.uint64)
            entries[low - first : high - first] = at * np.uint64(CLUSTER) | _COPIED
            row += 1

    def _put(self, cluster: int, data: bytes) -> None:
        """Write a table, to the end of its last cluster: a device has old content there."""
        whole = data.ljust(_ceil(len(data), CLUSTER) * CLUSTER, b"\0")
        self._file.write(cluster * CLUSTER, whole)

    @contextlib.contextmanager
    def reader(self) -> Iterator[_TableReader]:
        """A new reader, which finds everything by the tables that are in the file."""
        with self._file.reader() as raw:
            yield _TableReader(raw, self._failure, self.where)

    def zero_extents(self, within: Extents) -> Extents:
        """What the tables in the file have no data for."""
        with self.reader() as reader:
            return reader.zeros(within)


class _TableReader:
    """Reads for one thread, by the tables of an image that has no backing file."""

    def __init__(self, raw: Reader, failure: type[FleeceError], where: str) -> None:
        self._raw = raw
        self._failure = failure
        self._where = where
        fields = _HEADER.unpack(bytes(raw.read(0, _HEADER.size)))
        if fields[:2] != (_MAGIC, _VERSION) or fields[3] or fields[4] != _CLUSTER_BITS:
            raise failure("the header that was written is not there", where=where)
        self.size: int = fields[5]
        self._l1 = _entries(raw, fields[8], fields[7])
        self._number = -1
        self._table = np.zeros(_PER_TABLE, np.uint64)

    def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Exactly `length` bytes of the disk; a view is valid until the next call."""
        place, count = self._run(offset, length)
        if place is not None and count == length:
            return self._raw.read(place, count)
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            place, count = self._run(offset + done, length - done)
            if place is not None:
                view[done : done + count] = self._raw.read(place, count)
            done += count
        return data

    def _run(self, offset: int, most: int) -> tuple[int | None, int]:
        """Where the bytes from `offset` on lie in the file, and how many lie together there."""
        cluster, inside = divmod(offset, CLUSTER)
        table = self._table_of(cluster // _PER_TABLE)
        first = cluster % _PER_TABLE
        count = min(_ceil(inside + most, CLUSTER), _PER_TABLE - first)
        places = table[first : first + count] & _OFFSET
        if places[0] == 0:
            same = places == 0
        else:
            same = places == places[0] + np.arange(count, dtype=np.uint64) * np.uint64(CLUSTER)
        together = count if same.all() else int(np.argmin(same))
        length = min(together * CLUSTER - inside, most)
        return (int(places[0]) + inside if places[0] else None), length

    def zeros(self, within: Extents) -> Extents:
        """The parts that have no data."""
        found: list[Extents] = []
        span = _PER_TABLE * CLUSTER
        for start, end in zip(*within.split(span), strict=True):
            number = int(start) // span
            if not self._l1[number]:
                found.append(Extents.of([(int(start), int(end))]))
                continue
            empty = np.flatnonzero(self._table_of(number) & _OFFSET == 0)
            low = empty * CLUSTER + number * span
            found.append(Extents.normal(low, low + CLUSTER).clip(int(start), int(end)))
        return Extents.joined(found)

    def _table_of(self, number: int) -> _Entries:
        if number != self._number:
            place = int(self._l1[number] & _OFFSET)
            none = np.zeros(_PER_TABLE, np.uint64)
            self._table = _entries(self._raw, place, _PER_TABLE) if place else none
            self._number = number
        return self._table


def _entries(raw: Reader, place: int, count: int) -> _Entries:
    """uint64[n]: a table of the file."""
    parts = []
    for first in range(0, count, _STEP * _PER_TABLE // 8):
        some = min(count - first, _STEP * _PER_TABLE // 8)
        parts.append(np.frombuffer(bytes(raw.read(place + first * 8, some * 8)), ">u8"))
    return np.concatenate(parts).astype(np.uint64)


def _clusters(ranges: Extents) -> Extents:
    """The numbers of the clusters that ranges of bytes touch."""
    return Extents.normal(ranges.start // CLUSTER, -(-ranges.end // CLUSTER))


def _tables(clusters: Extents) -> Int64Array:
    """int64[n]: the numbers of the L2 tables that hold clusters, ascending."""
    touched = Extents.normal(clusters.start // _PER_TABLE, -(-clusters.end // _PER_TABLE))
    parts = [np.arange(low, high) for low, high in touched]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _counts(clusters: int) -> tuple[int, int]:
    """How many refcount blocks so many clusters need, and clusters of the table of them."""
    blocks = _ceil(clusters, _PER_BLOCK)
    return blocks, _ceil(blocks * 8, CLUSTER)


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)
