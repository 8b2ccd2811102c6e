"""What a damaged delta still proves of its disk, and the salvaged file that keeps it.

docs/internals/format.rst, "Salvaged files", is the contract.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fleece.delta import footer, header, pages, record
from fleece.delta.layout import INDEX_ROW, Kind, Tag, own_hash
from fleece.delta.protection import begin
from fleece.delta.sink import Appender, Sink
from fleece.delta.wreck import Wreck
from fleece.extents import Extents, Int64Array
from fleece.tree import HashArray, joined

NOWHERE = 0
"""The position of an index row without a record: the header stands there."""


@dataclass(frozen=True)
class Survey:
    """What a file still proves of the part of the disk that its delta held.

    Attributes:
        rows: its proven records by offset, and the zero ranges that its index alone still tells
            of: their position is 0. Disjoint.
        lost: the parts of the disk that the delta held and whose content is gone, in bytes.
        uncertain: the parts of which nothing left tells whether the delta held them, in bytes.
        leaves: int64[n], ascending: the leaves of the data rows.
        hashes: uint8[n, hash size]: of these leaves.
    """

    rows: pages.IndexRows
    lost: Extents
    uncertain: Extents
    leaves: Int64Array
    hashes: HashArray

    def held(self, kind: Kind | None = None) -> Extents:
        """The parts of the disk that are proven, of one kind or of both, in bytes."""
        return extents_of(self.rows, kind)


class Surveyor:
    """Gathers what was found in a wreck; `finish` draws the conclusions.

    Not for several threads at once.
    """

    def __init__(self, wreck: Wreck) -> None:
        self._wreck = wreck
        self._rows: dict[int, tuple[int, int, int, int, int]] = {}
        self._leaves: dict[int, tuple[int, bytes]] = {}
        self._seen: set[int] = set()
        self._broken: list[tuple[int, int]] = []

    def proven(self, found: record.Record, position: int) -> None:
        """A record, all of whose hashes hold; of copies the first counts."""
        number = found.sequence
        self._seen.add(number)
        if number not in self._rows:
            length, kind = found.frame_length, int(found.kind)
            self._rows[number] = (found.offset, found.length, position, length, kind)
            if found.kind is Kind.DATA:
                first = found.offset // self._wreck.geometry.leaf_size
                self._leaves[number] = (first, found.leaves)

    def broken(self, found: record.Record) -> None:
        """A record whose own hash holds, and whose frame or data is damaged."""
        self._seen.add(found.sequence)
        self._broken.append((found.offset, found.offset + found.length))

    def finish(self) -> Survey:
        """What all of it proves."""
        wreck = self._wreck
        self._drop_contradictions()
        claimed, doubtful = wreck.index()
        rows = np.array(list(self._rows.values()), INDEX_ROW)
        broken = Extents.of(self._broken)
        known = extents_of(rows).union(broken)
        blank = extents_of(claimed, Kind.ZERO).subtract(known)
        rows = sorted_rows(rows, ranges(blank, Kind.ZERO))
        held = extents_of(rows)
        lost = broken.union(extents_of(claimed, Kind.DATA)).union(extents_of(claimed, Kind.LOST))
        uncertain = doubtful.union(extents_of(claimed, Kind.UNCERTAIN))
        if wreck.header.parent is None:
            lost = Extents.whole(wreck.geometry.size)
        elif self._has_seen_all():
            uncertain = Extents.empty()
        lost = lost.subtract(held)
        uncertain = uncertain.subtract(held).subtract(lost)
        leaves, hashes = joined(self._leaves.values(), wreck.geometry.algorithm.size)
        return Survey(rows, lost, uncertain, leaves, hashes)

    def _drop_contradictions(self) -> None:
        """Records of one file never overlap. Those that do prove nothing."""
        reach, widest = 0, -1
        wrong = set()
        for number, row in sorted(self._rows.items(), key=lambda item: item[1][0]):
            if row[0] < reach:
                wrong |= {number, widest}
            if row[0] + row[1] > reach:
                reach, widest = row[0] + row[1], number
        for number in wrong:
            row = self._rows.pop(number)
            self._leaves.pop(number, None)
            self._broken.append((row[0], row[0] + row[1]))

    def _has_seen_all(self) -> bool:
        """Whether every record of the delta was found, even if its data is damaged."""
        wreck = self._wreck
        last = wreck.footer if wreck.header.salvaged is None else None
        return last is not None and last.records == len(self._seen)


def write_salvaged(
    sink: Sink, wreck: Wreck, survey: Survey, listener: Callable[[int], None]
) -> None:
    """Write the salvaged file of a wreck, front to back. The caller makes it durable.

    Args:
        sink: where the bytes go.
        wreck: open.
        survey: of it.
        listener: hears the bytes of disk of each record that was copied.

    Raises:
        DeltaError: what was proven before is gone.
    """
    key_frame, frames = begin(wreck.protection)
    made = Appender(sink, frames)
    made.store(key_frame)
    root, top = wreck.root, wreck.top
    kept = header.Salvaged(root.hex() if root else None, top.hex() if top else None)
    head = header.pack(dataclasses.replace(wreck.header, salvaged=kept))
    geometry = wreck.geometry
    first = last = own_hash(head, geometry.algorithm)
    made.frame(Tag.HEADER, head)
    rows = np.sort(survey.rows, order="position")
    for at in np.flatnonzero(rows["position"] != NOWHERE).tolist():
        packed, frame = _record(wreck, rows[at])
        rows["position"][at] = made.position
        made.frame(Tag.RECORD, packed)
        if frame:
            made.frame(Tag.DATA, frame)
        last = own_hash(packed, geometry.algorithm)
        listener(int(rows["length"][at]))
    listed = [_placed(made, page, frame) for page, frame in wreck.tree_pages()]
    index = sorted_rows(
        rows, ranges(survey.lost, Kind.LOST), ranges(survey.uncertain, Kind.UNCERTAIN)
    )
    listed += [_placed(made, page, frame) for frame, page in pages.index_pages([index], geometry)]
    directory = pages.pack_directory(listed, geometry)
    nothing = bytes(geometry.algorithm.size)
    end = footer.Footer(
        file_id=wreck.header.file_id,
        directory_position=made.position,
        directory_length=len(directory),
        records=int(np.count_nonzero(rows["position"])),
        data_bytes=survey.held(Kind.DATA).total,
        zero_bytes=survey.held(Kind.ZERO).total,
        frame_bytes=int(rows["frame_length"].sum()),
        header_hash=first,
        last_record=last,
        directory_hash=own_hash(directory, geometry.algorithm),
        top=nothing,
        root=nothing,
    )
    made.frame(Tag.DIRECTORY, directory)
    made.frame(Tag.FOOTER, footer.pack(end, geometry.algorithm))


def _record(wreck: Wreck, row: np.void) -> tuple[bytes, bytes]:
    """A RECORD frame and its zstd frame, byte for byte, proven once more."""
    offset, length, position, frame_length, kind = row.tolist()
    _, frame = wreck.record_at(offset, length, position, frame_length, kind)
    packed = wreck.frame(Tag.RECORD, position, record.size_of(Kind(kind), length, wreck.geometry))
    return packed, frame


def _placed(made: Appender, page: pages.Page, frame: bytes) -> pages.Page:
    """Append a page; gives its row of the directory."""
    placed = dataclasses.replace(page, position=made.position)
    made.frame(page.tag, frame)
    return placed


def ranges(extents: Extents, kind: Kind) -> pages.IndexRows:
    """Index rows of ranges that have no record."""
    rows = np.zeros(len(extents), INDEX_ROW)
    rows["offset"], rows["length"] = extents.start, extents.length
    rows["position"], rows["kind"] = NOWHERE, kind
    return rows


def sorted_rows(*parts: pages.IndexRows) -> pages.IndexRows:
    """Index rows joined, by ascending offset."""
    return np.sort(np.concatenate(parts), order="offset")


def extents_of(rows: pages.IndexRows, kind: Kind | None = None) -> Extents:
    """The ranges of the disk, in bytes, of index rows, of one kind or of all."""
    picked = rows if kind is None else rows[rows["kind"] == kind]
    start = picked["offset"].astype(np.int64)
    return Extents.normal(start, start + picked["length"].astype(np.int64))
