"""Segments: the dirty bitmaps of what was written on a disk since a point, told by their names.

What was written since point k is the union of segment k and every later one. A failed backup leaves
its segment in the line; a committed one drops those before its own.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fleece.source.base import Since, Unknown
from fleece.source.workfolder import PREFIX

_TAG_DIGITS = 16
_SEGMENT = re.compile(
    rf"{PREFIX}([0-9a-f]{{8}})-(\d{{6,}})-(\d{{6,}})-([0-9a-f]{{10}})(?:-([0-9a-f]{{{_TAG_DIGITS}}}))?"
)


def disk_tag(disk: str) -> str:
    """What stands for a disk's name in the names of its segments, which cannot hold any text."""
    return hashlib.sha256(disk.encode()).hexdigest()[:_TAG_DIGITS]


@dataclass(frozen=True)
class Segment:
    """The dirty bitmap of what was written on one disk since a point.

    Attributes:
        chain_id: whose it is.
        sequence: of the point at which it began.
        previous: sequence of the segment before it on this disk; 0: there was none. A segment
            that someone removed from the middle is noticed by it.
        point: at which it began.
        tag: of the disk that it was begun for (`disk_tag`). A bitmap goes with its image, which may
            be another disk's by now. None: of an early fleece, whose bitmaps do not tell.
    """

    chain_id: str
    sequence: int
    previous: int
    point: str
    tag: str | None

    @property
    def bitmap(self) -> str:
        """The bitmap's name in QEMU."""
        name = f"{PREFIX}{self.chain_id}-{self.sequence:06d}-{self.previous:06d}-{self.point}"
        return name if self.tag is None else f"{name}-{self.tag}"

    def is_of(self, disk: str) -> bool:
        """Whether it was begun for the disk of this name."""
        return self.tag == disk_tag(disk)

    @staticmethod
    def parse(bitmap: str) -> Segment | None:
        """The segment that a bitmap's name means; None: it is not ours."""
        found = _SEGMENT.fullmatch(bitmap)
        if found is None:
            return None
        segment = Segment(found[1], int(found[2]), int(found[3]), found[4], found[5])
        return segment if segment.bitmap == bitmap else None


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap as QEMU reports it (QAPI `BlockDirtyInfo`).

    Attributes:
        granularity: bytes of disk per bit.
        count: dirty bytes.
        recording: it records new writes.
        busy: some operation holds it.
        persistent: it is stored in the image when QEMU ends.
        inconsistent: it was not stored properly; it can only be removed.
    """

    name: str
    granularity: int
    count: int
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool

    @property
    def state(self) -> str:
        """One word for people."""
        if self.inconsistent:
            return "inconsistent"
        if self.busy:
            return "busy"
        return "recording" if self.recording else "disabled"

    @property
    def segment(self) -> Segment | None:
        """The segment that it is, if it is one of ours."""
        return Segment.parse(self.name)


class SegmentedDisk(Protocol):
    """A disk that has segments."""

    @property
    def name(self) -> str:
        """Of the disk."""

    @property
    def size(self) -> int:
        """In bytes."""

    def segments(self, chain_id: str) -> Mapping[int, Bitmap]:
        """The chain's segments on it, by sequence."""


def segments_of(bitmaps: Iterable[Bitmap], chain_id: str) -> dict[int, Bitmap]:
    """A chain's segments among some bitmaps of one disk, by sequence."""
    found = ((bitmap.segment, bitmap) for bitmap in bitmaps)
    return {seg.sequence: bitmap for seg, bitmap in found if seg and seg.chain_id == chain_id}


def written_since(
    disk: SegmentedDisk, chain_id: str, sequence: int, point: str, names: Collection[str] = ()
) -> Since | Unknown:
    """Find the unbroken line of segments from a point until now; the bitmaps are their names.

    Args:
        disk: as the inventory shows it now.
        chain_id: whose points these are.
        sequence, point: of the point that the store has.
        names: of the chain's disks, to tell whose a segment is that is not this disk's.
    """
    held = disk.segments(chain_id)
    first = held.get(sequence)
    if first is None or (segment := first.segment) is None or segment.point != point:
        return _foreign(disk, held.values(), names) or Unknown(
            f"there is no bitmap of what was written since point {point}"
        )
    line = [number for number in sorted(held) if number >= sequence]
    if (foreign := _foreign(disk, [held[number] for number in line], names)) is not None:
        return foreign
    for number in line:
        if (trouble := _trouble(held[number])) is not None:
            return Unknown(trouble)
    if not held[line[-1]].recording:
        return Unknown(f"no bitmap has recorded writes since {held[line[-1]].name}")
    for before, after in itertools.pairwise(line):
        later = held[after].segment
        if later is None or later.previous != before:
            return Unknown(f"a bitmap between {held[before].name} and {held[after].name} is gone")
    written = sum(held[number].count for number in line)
    return Since(tuple(held[number].name for number in line), min(written, disk.size))


def next_segment(disk: SegmentedDisk, chain_id: str, sequence: int, point: str) -> Segment:
    """The segment that a new point begins on a disk."""
    previous = max(disk.segments(chain_id), default=0)
    return Segment(chain_id, sequence, previous, point, disk_tag(disk.name))


def _foreign(
    disk: SegmentedDisk, bitmaps: Iterable[Bitmap], names: Collection[str]
) -> Unknown | None:
    """Why bitmaps on a disk say nothing of it: they were begun for another one; None: for this.

    They are on the image, and that was another disk's then, or is a copy of another disk's.
    """
    for bitmap in bitmaps:
        segment = bitmap.segment
        if segment is None or segment.is_of(disk.name):
            continue
        if segment.tag is None:
            return Unknown(
                f"bitmap {bitmap.name}, of an early fleece, does not tell which disk's it is"
            )
        owner = next((name for name in sorted(names) if segment.is_of(name)), None)
        whose = "another disk" if owner is None else f"disk {owner}"
        return Unknown(
            f"its bitmaps are those of {whose}: the disks, or their images, were exchanged"
        )
    return None


def _trouble(bitmap: Bitmap) -> str | None:
    if bitmap.inconsistent:
        return f"bitmap {bitmap.name} is inconsistent: QEMU did not end cleanly"
    if bitmap.busy:
        return f"bitmap {bitmap.name} is in use by another operation"
    return None
