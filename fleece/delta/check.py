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
from fleece.tree import Growing, NodeSource, seen_as

_BATCH = 4096


@dataclass(frozen=True)
class Placed:
    """A record and the position of its frame in the file."""

    record: Record
    position: int
    frame_position: int


class Walk:
    """A walk over all records of a delta, in the order of the file.

    Iterate it to its end, then call `finish`, or `check_layout`, which is less. Decoding the frames
    is the caller's, who may do it in many threads (`DeltaReader.check_frame` and `unpack`).

    Args:
        delta: open.
        keep_leaves: `finish` needs them; they take 24 bytes of memory for each leaf.
    """

    def __init__(self, delta: DeltaReader, *, keep_leaves: bool = True) -> None:
        self._delta = delta
        self._keep_leaves = keep_leaves
        self._rows = RowSpool(delta.geometry.leaf_size)
        self._leaves = HashSpool(delta.geometry.algorithm.size)
        self._end = (
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
        position = delta.records_start
        previous = delta.footer.header_hash
        while position < self._end:
            packed = delta.record_frame(position, self._end)
            found = record.parse(packed, delta.geometry, delta.where)
            if found.file_id != delta.header.file_id:
                raise delta.damaged("a record is of another file", found.offset)
            if found.sequence != len(self._rows) or found.previous != previous:
                raise delta.damaged("a record is not in its place", found.offset)
            previous = own_hash(packed, delta.geometry.algorithm)
            self._note(found, position)
            data = position + len(packed) + overhead
            yield Placed(found, position, data)
            position = data + (found.frame_length + overhead if found.kind is Kind.DATA else 0)
        if position != self._end or previous != delta.footer.last_record:
            raise DeltaError("the records do not end where they must", where=delta.where)

    def _note(self, found: Record, position: int) -> None:
        self._rows.add(found.offset, found.length, position, found.frame_length, found.kind)
        if found.kind is Kind.DATA and self._keep_leaves:
            first = found.offset // self._delta.geometry.leaf_size
            self._leaves.add_run(first, found.leaves)

    def finish(self, base: NodeSource) -> None:
        """Compare index, tree, counts and root with the records.

        Args:
            base: the disk at the parent.

        Raises:
            DeltaError: they do not fit.
        """
        self.check_layout()
        delta, last = self._delta, self._delta.footer
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
        self._check_tree(base)

    def check_layout(self) -> None:
        """Check that the index is the records, and that pages alone stand behind them, in order.

        Raises:
            DeltaError: it is not so.
        """
        same = _same(
            ((rows,) for rows in part) for part in (self._rows.parts(), self._delta.index())
        )
        if not same or self._delta.footer.records != len(self._rows):
            raise DeltaError("the index is not what the records say", where=self._delta.where)
        position = self._end
        for page in self._delta.pages:
            if page.position != position:
                raise DeltaError("bytes between the pages", where=self._delta.where)
            position += page.length + self._delta.frames.overhead
        if position != self._delta.footer.directory_position:
            raise DeltaError("bytes before the directory", where=self._delta.where)

    def _check_tree(self, base: NodeSource) -> None:
        delta, shape = self._delta, self._delta.geometry
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


def _same(sides: Iterable[Iterator[tuple[npt.NDArray[Any], ...]]]) -> bool:
    """Whether two series of arrays hold the same rows, however they are cut."""
    for one, other in itertools.zip_longest(*(in_batches(side, _BATCH) for side in sides)):
        if one is None or other is None:
            return False
        if not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)):
            return False
    return True
