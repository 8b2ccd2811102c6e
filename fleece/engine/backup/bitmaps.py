"""Which segments a source keeps, which store needs each, and dropping those of a lost store.

A segment is the dirty bitmap of what was written since a point. A committed backup drops the older
ones of its own chain, so only a chain whose store is no longer used leaves any behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleece.engine.backup.identity import guest_name
from fleece.errors import PointError, StoreError, UsageError
from fleece.source.base import KeepsBitmaps, KeptBitmap, Source
from fleece.store.store import Store
from fleece.terminal import counted


@dataclass(frozen=True)
class KeptSegment:
    """One segment in a source.

    Attributes:
        bitmap: which, as the source tells.
        stores: those of the given ones that need it.
    """

    bitmap: KeptBitmap
    stores: tuple[str, ...]


def segments(
    source: Source, stores: Sequence[Store] = (), guest: str | None = None
) -> list[KeptSegment]:
    """All segments of all disks, by disk, chain and age.

    Args:
        source: of the guest.
        stores: to ask which segments they need.
        guest: its name in the stores, if it is not the source's own.

    Raises:
        StoreError: of a store it cannot be told, because a file in it is damaged.
        UsageError: no point in a store can have the guest's name; or this source has no segments.
    """
    keeper, needs = _keeper(source), []
    if stores:
        name = guest_name(source, guest)
        needs = [(store.where, _chains(store, name)) for store in stores]
    return [KeptSegment(bitmap, _needing(bitmap, needs)) for bitmap in keeper.bitmaps()]


def _keeper(source: Source) -> KeepsBitmaps:
    if not isinstance(source, KeepsBitmaps):
        raise UsageError("this kind of source keeps no bitmaps", where=source.where)
    return source


def _needing(bitmap: KeptBitmap, needs: list[tuple[str, set[str]]]) -> tuple[str, ...]:
    return tuple(where for where, chains in needs if bitmap.chain_id in chains)


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
    source: Source,
    chain_id: str,
    stores: Sequence[Store] = (),
    guest: str | None = None,
) -> list[KeptSegment]:
    """Drop all segments of a chain. A next backup into its store, if there is one, reads all.

    Args:
        source: of the guest.
        chain_id: the whole of it.
        stores: that must not need it.
        guest: its name in the stores, if it is not the source's own.

    Returns:
        What was dropped.

    Raises:
        StoreError: a given store needs the chain, or it cannot be told.
        PointError: the source has no segment of the chain, or a point of it is there.
        SourceError: the guest is not there.
        UsageError: no point in a store can have the guest's name; or this source has no segments.
    """
    keeper = _keeper(source)
    keeper.check_present()
    mine = [kept for kept in segments(source, stores, guest) if kept.bitmap.chain_id == chain_id]
    if not mine:
        raise PointError(f"there is no segment of chain {chain_id}", where=source.where)
    if mine[0].stores:
        raise StoreError(
            f"it needs the segments of chain {chain_id}", where=", ".join(mine[0].stores)
        )
    if keeper.has_point(chain_id):
        raise PointError(
            f"a point of chain {chain_id} is in the source: a backup is running, or an interrupted "
            "one left it",
            where=source.where,
            hint="wait for its end, or 'fleece clean' takes it down",
        )
    for kept in mine:
        keeper.drop_bitmap(kept.bitmap.disk, kept.bitmap.name)
    return mine
