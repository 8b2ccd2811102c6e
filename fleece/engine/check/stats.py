"""What the points of each guest come to, by their deltas' own words. Reads no data."""

from __future__ import annotations

from dataclasses import dataclass

from fleece.store.catalogue import Catalogue


@dataclass(frozen=True)
class GuestStats:
    """What is stored of a guest.

    Attributes:
        guest: its name.
        points: how many are complete.
        restored_bytes: of disk, of all these: what they would take if each was restored.
        data_bytes: of disk, that its deltas hold as data, before they are compressed.
        stored_bytes: of its files, those of incomplete points too.
    """

    guest: str
    points: int
    restored_bytes: int
    data_bytes: int
    stored_bytes: int


def stats(catalogue: Catalogue, guest: str | None = None) -> tuple[GuestStats, ...]:
    """What is stored of each guest, or of one.

    Raises:
        StoreError: the guest that is named has no point.
    """
    found = []
    for name in sorted({point.guest for point in catalogue.named(guest)}):
        mine = [entry for entry in catalogue.entries if entry.header.guest == name]
        points = catalogue.of_guest(name)
        sizes = (entry.header.size for point in points for entry in point.deltas.values())
        found.append(
            GuestStats(
                name,
                len(points),
                sum(sizes),
                sum(entry.data_bytes for entry in mine),
                sum(entry.stored_bytes for entry in mine),
            )
        )
    return tuple(found)
