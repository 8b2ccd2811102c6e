"""Check one delta from its first byte to its last: nothing in the file is left unread.

The walk goes by the records themselves, not by the index, and then holds the index, the tree and
the footer against what it saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fleece.delta import record
from fleece.delta.layout import INDEX_ROW, Kind, Tag, own_hash
from fleece.delta.pages import Page
from fleece.delta.reader import DeltaReader
from fleece.delta.record import Record
from fleece.errors import DeltaError
from fleece.extents import Extents
from fleece.tree import NodeSource, build, joined


@dataclass(frozen=True)
class Placed:
    """A record and the position of its frame in the file."""

    record: Record
    position: int
    frame_position: int


class Walk:
    """A walk over all records of a delta, in the order of the file.

    Iterate it to its end, then call `finish`. Decoding the frames is the caller's, who may do it
    in many threads (`DeltaReader.check_frame` and `unpack`).
    """

    def __init__(self, delta: DeltaReader) -> None:
        self._delta = delta
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._leaves: list[tuple[int, bytes]] = []
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
        position = delta.records_start
        previous = delta.footer.header_hash
        while position < self._end:
            packed = delta.record_frame(position, self._end)
            found = record.parse(packed, delta.geometry, delta.path)
            if found.file_id != delta.header.file_id:
                raise delta.damaged("a record is of another file", found.offset)
            if found.sequence != len(self._rows) or found.previous != previous:
                raise delta.damaged("a record is not in its place", found.offset)
            previous = own_hash(packed, delta.geometry.algorithm)
            self._note(found, position)
            yield Placed(found, position, position + len(packed))
            position += len(packed) + found.frame_length
        if position != self._end or previous != delta.footer.last_record:
            raise DeltaError("the records do not end where they must", where=delta.path)

    def _note(self, found: Record, position: int) -> None:
        self._rows.append((found.offset, found.length, position, found.frame_length, found.kind))
        if found.kind is Kind.DATA:
            self._leaves.append((found.offset // self._delta.geometry.leaf_size, found.leaves))

    def finish(self, base: NodeSource) -> None:
        """Hold index, tree, counts and root against the records.

        Args:
            base: the disk at the parent.

        Raises:
            DeltaError: they do not fit.
        """
        delta, last = self._delta, self._delta.footer
        rows = np.array(self._rows, INDEX_ROW)
        rows.sort(order="offset")
        if not np.array_equal(rows, delta.rows()) or last.records != len(rows):
            raise DeltaError("the index is not what the records say", where=delta.path)
        data = rows[rows["kind"] == Kind.DATA]
        zeros = delta.extents(Kind.ZERO)
        counts = int(data["length"].sum()), zeros.total, int(rows["frame_length"].sum())
        if counts != (last.data_bytes, last.zero_bytes, last.frame_bytes):
            raise DeltaError("the footer's counts are not what the records say", where=delta.path)
        if delta.header.parent is None and delta.extents() != Extents.whole(delta.geometry.size):
            raise DeltaError("a full delta that does not cover its disk", where=delta.path)
        self._check_pages()
        self._check_tree(base)

    def _check_pages(self) -> None:
        """Every byte between the records and the footer belongs to a page, in order."""
        position = self._end
        for page in self._delta.pages:
            if page.position != position:
                raise DeltaError("bytes between the pages", where=self._delta.path)
            position += page.length
        if position != self._delta.footer.directory_position:
            raise DeltaError("bytes before the directory", where=self._delta.path)

    def _check_tree(self, base: NodeSource) -> None:
        delta = self._delta
        numbers, hashes = joined(self._leaves, delta.geometry.algorithm.size)
        tree = build(delta.geometry, numbers, hashes, delta.zero_leaves, base)
        if tree.root != delta.footer.root:
            raise DeltaError(
                "the root is not what the records and the parent give", where=delta.path
            )
        held: dict[int, list[Page]] = {}
        for page in delta.pages:
            if page.tag is Tag.TREE:
                held.setdefault(page.level, []).append(page)
        if sorted(held) != [level.level for level in tree.levels]:
            raise DeltaError("the tree has the wrong levels", where=delta.path)
        for level in tree.levels:
            stored = [delta.tree_page(page) for page in held[level.level]]
            same = np.array_equal(np.concatenate([part.nodes for part in stored]), level.nodes)
            if not same or not np.array_equal(
                np.concatenate([part.children for part in stored]), level.children
            ):
                raise DeltaError("the tree is not what the records give", where=delta.path)
