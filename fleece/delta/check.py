"""Check one delta from its first byte to its last: nothing in the file is left unread.

The walk goes by the records themselves, not by the index, and then holds the index, the tree and
the footer against what it saw.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fleece.delta import record
from fleece.delta.layout import Kind, Tag, own_hash
from fleece.delta.pages import Page, in_batches
from fleece.delta.reader import DeltaReader
from fleece.delta.record import Record
from fleece.delta.spool import HashSpool, RowSpool
from fleece.errors import DeltaError
from fleece.extents import Extents
from fleece.tree import Geometry, Growing, NodeSource, seen_as

_BATCH = 4096


@dataclass(frozen=True)
class Placed:
    """A record, its RECORD frame as it is unsealed, and where both frames are in the file."""

    record: Record
    packed: bytes
    position: int
    frame_position: int


class Seen:
    """What the records of a delta say, noted in the order of the file.

    Args:
        geometry: of the disk.
        keep_leaves: `check` needs them; they take 24 bytes of memory for each leaf.
    """

    def __init__(self, geometry: Geometry, *, keep_leaves: bool = True) -> None:
        self._leaf_size = geometry.leaf_size
        self._keep_leaves = keep_leaves
        self.rows = RowSpool(geometry.leaf_size)
        self._leaves = HashSpool(geometry.algorithm.size)

    def note(self, found: Record, position: int) -> None:
        """Note the next record, and where its frame is in the file."""
        self.rows.add(found.offset, found.length, position, found.frame_length, found.kind)
        if found.kind is Kind.DATA and self._keep_leaves:
            self._leaves.add_run(found.offset // self._leaf_size, found.leaves)

    def check(self, delta: DeltaReader, end: int, base: NodeSource) -> None:
        """Compare index, tree, counts and root of a delta with its records.

        Args:
            delta: the file whose records were noted.
            end: of its last record.
            base: the disk at the parent.

        Raises:
            DeltaError: they do not fit.
        """
        self.check_layout(delta, end)
        last = delta.footer
        data = frames = 0
        for rows in delta.index():
            data += int(rows["length"][rows["kind"] == Kind.DATA].sum())
            frames += int(rows["frame_length"].sum())
        counts = data, delta.extents(Kind.ZERO).total, frames
        if counts != (last.data_bytes, last.zero_bytes, last.frame_bytes):
            raise DeltaError("the footer's counts are not what the records say", where=delta.where)
        own = Extents.of([(delta.header.covers_from, delta.header.size)])
        if len(own.subtract(delta.extents())):
            raise DeltaError(
                "it lacks parts of the disk that its parent lacks, too", where=delta.where
            )
        self._check_tree(delta, base)

    def check_layout(self, delta: DeltaReader, end: int) -> None:
        """Check that the index is the records, and that pages alone stand behind them, in order.

        Raises:
            DeltaError: it is not so.
        """
        same = _same(((rows,) for rows in part) for part in (self.rows.parts(), delta.index()))
        if not same or delta.footer.records != len(self.rows):
            raise DeltaError("the index is not what the records say", where=delta.where)
        position = end
        for page in delta.pages:
            if page.position != position:
                raise DeltaError("bytes between the pages", where=delta.where)
            position += page.length + delta.frames.overhead
        if position != delta.footer.directory_position:
            raise DeltaError("bytes before the directory", where=delta.where)

    def _check_tree(self, delta: DeltaReader, base: NodeSource) -> None:
        shape = delta.geometry
        spool = functools.partial(HashSpool, shape.algorithm.size)
        tree = Growing(shape, self._leaves, delta.zero_leaves, seen_as(base, shape), spool)
        held: dict[int, list[Page]] = {}
        for page in delta.pages:
            if page.tag is Tag.TREE:
                held.setdefault(page.level, []).append(page)
        same = True
        for number, parts in itertools.groupby(tree.levels(), key=lambda part: part.level):
            stored = (delta.tree_page(page) for page in held.pop(number, []))
            pairs = (((p.nodes, p.children) for p in side) for side in (parts, stored))
            same = same and _same(pairs)
        if tree.root != delta.footer.root:
            raise DeltaError(
                "the root is not what the records and the parent give", where=delta.where
            )
        if held or not same:
            raise DeltaError("the tree is not what the records give", where=delta.where)


class Walk:
    """A walk over all records of a delta, in the order of the file.

    Iterate it to its end, then call `finish`, or `check_layout`, which is less. Decoding the frames
    is the caller's, who may do it in many threads (`DeltaReader.check_frame` and `unpack`).

    Args:
        delta: open.
        keep_leaves: `finish` needs them; they take 24 bytes of memory for each leaf.

    Attributes:
        end: where the records end in the file, and the pages begin.
        seen: what was noted of them.
    """

    def __init__(self, delta: DeltaReader, *, keep_leaves: bool = True) -> None:
        self._delta = delta
        self.seen = Seen(delta.geometry, keep_leaves=keep_leaves)
        self.end = (
            min(page.position for page in delta.pages)
            if delta.pages
            else (delta.footer.directory_position)
        )

    def __iter__(self) -> Iterator[Placed]:
        """The records.

        Raises:
            DeltaError: one is damaged, or is not where and what its place in the line demands.
        """
        delta = self._delta
        overhead = delta.frames.overhead
        position, previous = delta.records_start, delta.footer.header_hash
        number = 0
        while position < self.end:
            packed = delta.record_frame(position, self.end)
            found = record.parse(packed, delta.geometry, delta.where)
            if found.file_id != delta.header.file_id:
                raise delta.damaged("a record is of another file", found.offset)
            if found.sequence != number or found.previous != previous:
                raise delta.damaged("a record is not in its place", found.offset)
            previous = own_hash(packed, delta.geometry.algorithm)
            number += 1
            self.seen.note(found, position)
            data = position + len(packed) + overhead
            yield Placed(found, packed, position, data)
            position = data + (found.frame_length + overhead if found.kind is Kind.DATA else 0)
        if position != self.end or previous != delta.footer.last_record:
            raise DeltaError("the records do not end where they must", where=delta.where)

    def finish(self, base: NodeSource) -> None:
        """Compare index, tree, counts and root with the records.

        Args:
            base: the disk at the parent.

        Raises:
            DeltaError: they do not fit.
        """
        self.seen.check(self._delta, self.end, base)

    def check_layout(self) -> None:
        """Check that the index is the records, and that pages alone stand behind them, in order.

        Raises:
            DeltaError: it is not so.
        """
        self.seen.check_layout(self._delta, self.end)


def _same(sides: Iterable[Iterator[tuple[npt.NDArray[Any], ...]]]) -> bool:
    """Whether two series of arrays hold the same rows, however they are cut."""
    for one, other in itertools.zip_longest(*(in_batches(side, _BATCH) for side in sides)):
        if one is None or other is None:
            return False
        if not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)):
            return False
    return True
