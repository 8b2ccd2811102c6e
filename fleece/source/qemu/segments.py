"""Whether QEMU still knows all that was written on a disk since a point, and by which bitmaps.

What was written since point k is the union of segment k and every later one. A failed backup leaves
its segment in the line; a committed one drops those before its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

from fleece.source.base import Since, Unknown
from fleece.source.qemu.inventory import Bitmap, GuestDisk
from fleece.source.qemu.names import Segment, disk_tag


def written_since(
    disk: GuestDisk, chain: str, sequence: int, point: str, names: Collection[str] = ()
) -> Since | Unknown:
    """Find the unbroken line of segments from a point until now; the bitmaps are their names.

    Args:
        disk: as the inventory shows it now.
        chain: whose points these are.
        sequence, point: of the point that the store has.
        names: of the chain's disks, to tell whose a segment is that is not this disk's.
    """
    held = disk.segments(chain)
    first = held.get(sequence)
    if first is None or (segment := first.segment) is None or segment.point != point:
        return _foreign(disk, held.values(), names) or Unknown(
            f"QEMU has no bitmap of what was written since point {point}"
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


def next_segment(disk: GuestDisk, chain: str, sequence: int, point: str) -> Segment:
    """The segment that a new point begins on a disk."""
    previous = max(disk.segments(chain), default=0)
    return Segment(chain, sequence, previous, point, disk_tag(disk.name))


def _foreign(disk: GuestDisk, bitmaps: Iterable[Bitmap], names: Collection[str]) -> Unknown | None:
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
