"""Which segments a QEMU keeps, which store needs each, and dropping those of a store that is gone.

A segment is the dirty bitmap of what was written since a point. A committed backup drops the older
ones of its own chain, so only a chain whose store is no longer used leaves any behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleece.engine.backup.guest import guest_name
from fleece.errors import PointError, StoreError
from fleece.source.qemu.inventory import Bitmap
from fleece.source.qemu.names import Segment
from fleece.source.qemu.source import QemuSource
from fleece.store.store import Store
from fleece.terminal import counted


@dataclass(frozen=True)
class KeptSegment:
    """One segment in QEMU.

    Attributes:
        disk: the disk's name.
        segment: which, by its name.
        bitmap: as QEMU reports it.
        stores: those of the given ones that need it.
    """

    disk: str
    segment: Segment
    bitmap: Bitmap
    stores: tuple[str, ...]


def segments(
    source: QemuSource, stores: Sequence[Store] = (), guest: str | None = None
) -> list[KeptSegment]:
    """All segments of all disks, by disk, chain and age.

    Args:
        source: of the guest.
        stores: to ask which segments they need.
        guest: its name in the stores, if it is not the source's own.

    Raises:
        StoreError: of a store it cannot be told, because a file in it is damaged.
        UsageError: no point in a store can have the guest's name.
    """
    needs = []
    if stores:
        name = guest_name(source, guest)
        needs = [(store.where, _chains(store, name)) for store in stores]
    found = [
        (disk.name, segment, bitmap)
        for disk in source.inventory().disks
        for bitmap in disk.bitmaps
        if (segment := bitmap.segment) is not None
    ]
    found.sort(key=lambda one: (one[0], one[1].chain, one[1].sequence))
    return [
        KeptSegment(disk, segment, bitmap, _needing(segment, needs))
        for disk, segment, bitmap in found
    ]


def _needing(segment: Segment, needs: list[tuple[str, set[str]]]) -> tuple[str, ...]:
    return tuple(where for where, chains in needs if segment.chain in chains)


def _chains(store: Store, guest: str) -> set[str]:
    """The chains that a store holds points of, and the one that it would begin for the guest.

    The latter has segments before it has a point: of streamed deltas that are not imported yet.
    """
    catalogue = store.catalogue()
    if catalogue.damaged:
        raise StoreError(
            f"which chains it has is unknown because of "
            f"{counted(len(catalogue.damaged), 'damaged file')} ({catalogue.damaged[0].error})",
            where=store.where,
            hint="'fleece verify' shows what is whole",
        )
    return {entry.header.chain for entry in catalogue.entries} | {store.chain_id(guest)}


def drop_segments(
    source: QemuSource,
    chain: str,
    stores: Sequence[Store] = (),
    guest: str | None = None,
) -> list[KeptSegment]:
    """Drop all segments of a chain. A next backup into its store, if there is one, reads all.

    Args:
        source: of the guest.
        chain: its whole id.
        stores: that must not need it.
        guest: its name in the stores, if it is not the source's own.

    Returns:
        What was dropped.

    Raises:
        StoreError: a given store needs the chain, or it cannot be told.
        PointError: QEMU has no segment of the chain, or a point of it is there.
        SourceError: QEMU does not have its guest.
        UsageError: no point in a store can have the guest's name.
    """
    source.check_present()
    mine = [kept for kept in segments(source, stores, guest) if kept.segment.chain == chain]
    if not mine:
        raise PointError(f"there is no segment of chain {chain}", where=source.where)
    if mine[0].stores:
        raise StoreError(f"it needs the segments of chain {chain}", where=", ".join(mine[0].stores))
    if source.has_point(chain):
        raise PointError(
            f"a point of chain {chain} is in QEMU: a backup runs, or one that died left it",
            where=source.where,
            hint="wait for its end, or 'fleece clean' takes it down",
        )
    for kept in mine:
        source.drop_bitmap(kept.disk, kept.bitmap.name)
    return mine
